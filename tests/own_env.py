"""Environments of their own for tools that tests hold results against, and that the project does not need."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import platformdirs
import pytest

_SECONDS = 900  # for pip: downloads are small, since torch and transformers are taken from the tests' environment


class NotInstalledError(Exception):
    """A tool cannot be installed here; the message is a sentence that says why."""


def python_with(*requirements: str) -> Path:
    """Return the interpreter of an environment with these packages, their commands beside it; made once per user.

    Packages that the tests' environment has are found there, so that pip fetches only what is missing; it installs
    nothing outside the new environment.

    Args:
        requirements: as pip takes them, `mergekit==0.1.5`.

    Raises:
        NotInstalledError: with what pip says, for instance without a network.
    """
    packages = [Path(path) for path in sys.path if Path(path).name == "site-packages"]
    key = hashlib.sha256(repr((requirements, sys.version, packages)).encode()).hexdigest()[:12]
    folder = Path(platformdirs.user_cache_path("impart-tests")) / f"{requirements[0].partition('=')[0]}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    python, done = folder / "bin" / "python", folder / "installed"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes wait for the one that makes it
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder, python, packages, requirements)
            done.touch()
    return python


def python_or_skip(*requirements: str) -> Path:
    """Return the interpreter, or skip the test with the reason why there is none."""
    try:
        return python_with(*requirements)
    except NotInstalledError as error:
        pytest.skip(str(error))


def _install(folder: Path, python: Path, packages: list[Path], requirements: tuple[str, ...]) -> None:
    venv.create(folder, with_pip=True)
    own = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (own / "tests_environment.pth").write_text("".join(f"{path}\n" for path in packages))
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    named = " and ".join(requirements)
    try:
        done = subprocess.run(pip, env=environment, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise NotInstalledError(f"{named} was not installed within {_SECONDS} s.") from None
    if done.returncode != 0:
        why = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
        raise NotInstalledError(f"{named} cannot be installed here: {why}")
