"""What a warm process holds in memory before commands are forked from it; see warm.py."""

from impart_flows.cli.surroundings import prepare

prepare()  # Prefect reads its settings when it is imported

import prefect.main  # noqa: E402, F401
import pytest  # noqa: E402, F401
import s3fs  # noqa: E402, F401

import impart_core.apply.dense  # noqa: E402
import impart_core.lineage.graph  # noqa: E402
import impart_core.store.gc  # noqa: E402
import impart_core.store.verify  # noqa: E402, F401
import impart_flows.compress  # noqa: E402, F401
import tests.support  # noqa: E402, F401
