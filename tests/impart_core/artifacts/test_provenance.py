"""Who, when, with what, and at what cost."""

import time
from datetime import UTC, datetime, timedelta
from importlib import metadata

from impart_core import __version__
from impart_core.artifacts.provenance import Provenance, Stopwatch, peak_rss_bytes


def test_it_records_versions_start_and_duration() -> None:
    watch = Stopwatch()
    time.sleep(0.02)
    found = watch.provenance()
    assert found.code_version == __version__
    assert found.libraries["torch"] == metadata.version("torch")
    assert 0.02 <= found.seconds <= watch.seconds + 0.001
    started = datetime.fromisoformat(found.started)
    assert started.utcoffset() == timedelta(0)
    assert timedelta(0) <= datetime.now(UTC) - started < timedelta(minutes=1)
    assert Provenance.model_validate_json(found.model_dump_json()) == found


def test_peak_memory_is_in_bytes_and_follows_what_is_touched() -> None:
    before = peak_rss_bytes()
    assert 10 << 20 < before < 1 << 40
    held = bytearray(before + (64 << 20))
    held[::4096] = b"\1" * len(held[::4096])
    assert peak_rss_bytes() >= before + (64 << 20)
