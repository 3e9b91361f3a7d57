"""The wheel in a Prefect project with a `flows` folder and a `tasks` module of its own: neither breaks the other."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
THEIRS = "MINE = True\n"
PROGRAM = """
import flows.compress, tasks                     # the project's own
import impart_core as impart
import impart_flows.compress, impart_tasks.sparsify
from impart_flows.cli import main
assert flows.compress.MINE and tasks.MINE
assert impart_flows.compress.compress.name == "compress"
print(impart.__file__, impart_flows.__file__, impart_tasks.__file__, sep="\\n")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree, built with what is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "demo", "build", "*.egg-info", "tests"))
    subprocess.run([*pip, str(source)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed in."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True)
    return target


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A Prefect project as many are."""
    (tmp_path / "flows").mkdir()
    for name in ("flows/__init__.py", "flows/compress.py", "tasks.py"):
        (tmp_path / name).write_text(THEIRS)
    return tmp_path


def run(project: Path, installed: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project, with the wheel before all that is installed besides."""
    found = {**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{installed}", **environment}
    return subprocess.run(command, cwd=project, env=found, capture_output=True, text=True, check=False)


def test_the_wheel_takes_no_name_that_projects_use(wheel: Path) -> None:
    assert wheel.name.startswith("impart_zoo-")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"impart_core", "impart_flows", "impart_tasks"}
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in {"impart_core": "impart_core", "impart_flows": "flows", "impart_tasks": "tasks"}.items():
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc")
        assert {f"{package}/{path.relative_to(ROOT / folder).as_posix()}" for path in files} <= names


def test_both_are_imported_side_by_side(project: Path, installed: Path) -> None:
    done = run(project, installed, sys.executable, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(installed)) for line in done.stdout.splitlines())


def test_the_command_works_in_the_project(project: Path, installed: Path) -> None:
    command = [sys.executable, "-m", "impart_flows.cli"]
    assert run(project, installed, *command, "--version").stdout.startswith("impart ")
    base, math = (
        run(project, installed, *command, "tinyzoo", "path", name).stdout.strip() for name in ("base", "math")
    )
    assert base.startswith(str(installed))
    done = run(project, installed, *command, "compress", base, math, "--cr", "16", "--store", str(project / "store"))
    assert done.returncode == 0, done.stderr
    assert "cr_projection  16.00×" in done.stdout
    tasks = ["--tasks", "tinyzoo_math", "--limit", "2", "--store", str(project / "store")]
    measured = run(project, installed, *command, "evaluate", math, *tasks)
    assert measured.returncode == 0, measured.stderr
