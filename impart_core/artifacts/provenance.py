"""Who made an artifact, when, with which code and libraries, and at what cost."""

import getpass
import platform
import resource
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from time import perf_counter

from impart_core import __version__
from impart_core.config import Frozen

_LIBRARIES = ("torch", "numpy", "safetensors", "transformers", "lm-eval", "prefect")


class Provenance(Frozen):
    """Recorded with an artifact and never part of its id.

    Attributes:
        code_version: version of impart.
        libraries: versions of the installed libraries that matter.
        system: Python version and platform.
        user: who ran it.
        started: when, UTC, ISO 8601.
        seconds: how long it took.
        peak_rss_bytes: the process's peak resident memory by then.
    """

    code_version: str
    libraries: dict[str, str]
    system: str
    user: str
    started: str
    seconds: float
    peak_rss_bytes: int


class Stopwatch:
    """Measures one piece of work from its start."""

    def __init__(self) -> None:
        """Start measuring."""
        self._start = perf_counter()
        self._started = datetime.now(UTC)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return perf_counter() - self._start

    def provenance(self) -> Provenance:
        """Return the provenance of what was made since the start."""
        return Provenance(
            code_version=__version__,
            libraries=_versions(),
            system=f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
            user=_user(),
            started=self._started.isoformat(timespec="seconds"),
            seconds=round(self.seconds, 3),
            peak_rss_bytes=peak_rss_bytes(),
        )


def peak_rss_bytes() -> int:
    """Return this process's peak resident memory in bytes.

    Linux's own figure for the process image is preferred: `ru_maxrss` also counts the parent before exec.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
