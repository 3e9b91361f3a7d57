"""Environments of their own for programs that results are held against, or that are servers in tests."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import platformdirs

_SECONDS = 900  # for pip: downloads are small, since what the tests' environment has is taken from there


class NotInstalledError(Exception):
    """A package cannot be installed here; the message is a sentence that says why."""


def python_with(package: str, version: str) -> Path:
    """Return the interpreter of an environment with a package, its scripts beside it; made once per user.

    Packages that the tests' environment has are found there, so that pip fetches only the package and what is missing;
    it installs nothing outside the new environment.

    Raises:
        NotInstalledError: with what pip says, for instance without a network.
    """
    packages = [Path(path) for path in sys.path if Path(path).name == "site-packages"]
    key = hashlib.sha256(repr((version, sys.version, packages)).encode()).hexdigest()[:12]
    folder = Path(platformdirs.user_cache_path("impart-tests")) / f"{package}-{version}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    python, done = folder / "bin" / "python", folder / "installed"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes wait for the one that makes it
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder, python, packages, f"{package}=={version}")
            done.touch()
    return python


def _install(folder: Path, python: Path, packages: list[Path], wanted: str) -> None:
    venv.create(folder, with_pip=True)
    own = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (own / "tests_environment.pth").write_text("".join(f"{path}\n" for path in packages))
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    called = wanted.replace("==", " ")
    try:
        done = subprocess.run(pip, env=environment, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise NotInstalledError(f"{called} was not installed within {_SECONDS} s.") from None
    if done.returncode != 0:
        why = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
        raise NotInstalledError(f"{called} cannot be installed here: {why}")
