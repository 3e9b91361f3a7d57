"""Who made an artifact, when, with which code and libraries, and at what cost."""

import hashlib
import platform
import resource
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from time import perf_counter

from pydantic import Field

import impart_core
from impart_core import __version__
from impart_core.base.settings import Frozen
from impart_core.store.who import in_home, recorded_who, without_home

_PUBLIC = ("hf://", "hub:", "tinyzoo:")
_LIBRARIES = ("torch", "numpy", "safetensors", "transformers", "lm-eval", "prefect")


class Provenance(Frozen):
    """Recorded with an artifact and never part of its id.

    Attributes:
        code_version: version of impart.
        code_digest: SHA-256 of the sources of `impart_core`: it tells a change of code that raised no version.
        libraries: versions of the installed libraries that matter.
        system: Python version and platform.
        user: who made it, where that is to be recorded: a user or a CI job; see `who`. Empty: it was not.
        started: when, UTC, ISO 8601.
        seconds: how long it took.
        peak_rss_bytes: the process's peak resident memory by then.
        sources: where the inputs lay by role: `base` and `finetuned`, or `checkpoint` of an evaluation;
            the home folder of whoever ran it stands as `~`.
        run: id of the pipeline run that made it; empty outside of one.
        imported: whether it was copied from another store: whatever is true of it, it was not made here.
    """

    code_version: str
    code_digest: str = ""
    libraries: dict[str, str]
    system: str
    user: str
    started: str
    seconds: float
    peak_rss_bytes: int
    sources: dict[str, str] = Field(default_factory=dict)
    run: str = ""
    imported: bool = Field(default=False, exclude_if=lambda value: not value)

    @property
    def made_by(self) -> str:
        """When it was made, and by whom where that is recorded, for people."""
        return f"{self.started}, by {self.user}" if self.user else self.started

    def place(self, role: str) -> str | None:
        """Return where an input lay, as this machine has it; None: that was not recorded."""
        return in_home(self.sources[role]) if role in self.sources else None

    def public(self) -> "Provenance":
        """Return what strangers may read: without the user, the run, and where inputs lay unless that is public."""
        sources = {role: place for role, place in self.sources.items() if place.startswith(_PUBLIC)}
        return self.model_copy(update={"user": "", "run": "", "sources": sources})


class Stopwatch:
    """Measures one piece of work from its start, and knows where that came from."""

    def __init__(self, sources: Mapping[str, str] | None = None, run: str = "") -> None:
        """Start measuring.

        Args:
            sources: where the inputs lie by role, without credentials.
            run: id of the pipeline run that the work is part of.

        Raises:
            ConfigError: IMPART_WHO is none of its choices.
        """
        self._sources = {role: without_home(place) for role, place in (sources or {}).items()}
        self._run, self._who = run, recorded_who()
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
            code_digest=code_digest(),
            libraries=dict(_versions()),
            system=f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
            user=self._who,
            started=self._started.isoformat(timespec="seconds"),
            seconds=round(self.seconds, 3),
            peak_rss_bytes=peak_rss_bytes(),
            sources=self._sources,
            run=self._run,
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


@cache
def code_digest() -> str:
    """Return the SHA-256 (hex) over the installed sources of `impart_core`, read once for each process."""
    root = Path(impart_core.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


@cache
def _versions() -> Mapping[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found
