"""The script that keeps a Prefect server: where it keeps it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); print(flush=True); signal.pause()"


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    """Run a process that ends by SIGINT, as a server does, and is waited for."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(process.wait)
            yield process
            process.kill()


@pytest.mark.parametrize("absolute", [True, False])
def test_its_home_is_what_prefect_dev_home_says_absolute_or_below_the_repository(
    absolute: bool, server: subprocess.Popen[str], tmp_path: Path
) -> None:
    home = tmp_path if absolute else Path(os.path.relpath(tmp_path, ROOT))
    (tmp_path / "server.pid").write_text(f"{server.pid}\n")
    before = set(ROOT.iterdir())
    done = subprocess.run(
        [ROOT / "infra" / "prefect-server", "stop"],
        env={**os.environ, "PREFECT_DEV_HOME": str(home)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Stopped.\n", "")
    assert server.wait() != 0
    assert not (tmp_path / "server.pid").exists()
    assert not (ROOT / str(home).lstrip("/")).exists() or not absolute
    assert set(ROOT.iterdir()) == before
