"""docs/operations.md holds: every command on it is run, in its order, on real servers; what it says is lost is lost."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from impart_core import tinyzoo
from tests.servers import INFRA, free_ports, has_postgres, run_script
from tests.workers import kill_session

pytestmark = pytest.mark.e2e

ROOT = INFRA.parent
PAGE = (ROOT / "docs" / "operations.md").read_text()
BLOCK = re.compile(r"^### ([^\n]+)|^```sh\n(.+?)^```$", re.MULTILINE | re.DOTALL)
S3 = "import s3fs; s3 = s3fs.S3FileSystem()"
# What happens before a section's commands.
LOST = {
    "The store is lost": f"python -c '{S3}; s3.rm(\"impart/store\", recursive=True)'",
    "Half a copy of the store": f"python -c '{S3}; s3.rm(s3.glob(\"impart/store/artifacts/*/*.safetensors\")[::2])'",
    "The server is lost": 'infra/prefect-server stop; infra/postgres-server stop; rm -rf "$POSTGRES_DEV_HOME"',
}
LIMIT_SECONDS = 1500


def commands() -> str:
    """Return the page's commands as one script, with what happens between them; each is shown before it is run."""
    script, happens = ["set -exuo pipefail"], set()
    for heading, block in BLOCK.findall(PAGE):
        if heading:
            happens.add(heading)
            script.append(f"{{ {LOST[heading]}; }} >&2")
        else:
            script.append(block)
    assert happens == set(LOST)
    return "\n".join(script)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables of a site whose servers are started by the page, and stopped at the end; with a model `math`."""
    shutil.copytree(tinyzoo.path("math"), tmp_path / "models" / "math")
    with tempfile.TemporaryDirectory(prefix="impart-postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        homes = {name: str(tmp_path / name) for name in ("PREFECT_DEV_HOME", "PREFECT_HOME", "S3_DEV_HOME", "HOME")}
        own = {
            **homes,
            "POSTGRES_DEV_HOME": str(Path(folder) / "home"),
            **{f"{name}_PORT": str(free_ports(count)) for name, count in (("PREFECT", 1), ("POSTGRES", 1), ("S3", 8))},
            "BASE": str(tinyzoo.path("base")),
            "MODELS": str(tmp_path / "models"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        environment = {**os.environ, **own}
        for part, place in {"infra": INFRA, ".venv": Path(sys.prefix)}.items():  # as in a clone
            (tmp_path / part).symlink_to(place)
        try:
            yield environment
        finally:
            for server in ("prefect-server", "s3-server", "postgres-server"):
                run_script(INFRA / server, "stop", environment)


@pytest.mark.skipif(not has_postgres(), reason="PostgreSQL is not installed")
def test_every_command_on_the_page_does_what_it_says(site: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "page.log"
    with log.open("wb") as said:
        shell = subprocess.Popen(
            ["env", "--default-signal=INT", "bash", "-c", f"set -m\n{commands()}"],
            env=site,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            assert shell.wait(LIMIT_SECONDS) == 0, log.read_text()[-6000:]
        finally:
            kill_session(shell)
    nights = re.findall(r"^math +(promoted|unchanged|failed|refused)\b", log.read_text(), re.MULTILINE)
    # Shown twice; made again without the store, and from half of it; and left alone though the server was lost.
    assert nights == ["promoted"] * 4 + ["unchanged"]
