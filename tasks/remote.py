"""A stage on another machine: packed, carried out there, and what came of it told here as if it had been done here."""

import logging
import pickle
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from impart_core import __version__
from impart_core.base.errors import ClusterError
from impart_core.base.numerics import auto_means, use_all_cores
from impart_core.base.retry import Retried, current_ledger, patiently, recording
from impart_core.engine.executor import Stage
from impart_core.storage.objects import PROBES
from impart_core.store.store import Store

_OURS = "impart_core"  # whose warnings a run's user is to read
_FEW = 64


@dataclass(frozen=True)
class Done:
    """What came of a stage: its result, what was tried again, and warnings (logger, level, text)."""

    value: Any
    retried: tuple[Retried, ...]
    warnings: tuple[tuple[str, int, str], ...]

    def tell(self) -> None:
        """Enter what was tried again in the ledger of this run, and pass warnings on."""
        current_ledger().take(self.retried)
        for name, level, text in self.warnings:
            logging.getLogger(name).log(level, "%s", text)


def pack(value: object) -> bytes:
    """Return a value as bytes: names, digests and byte ranges, which repeat themselves."""
    return zlib.compress(pickle.dumps(value))


def unpack(data: bytes) -> Any:
    """Return what was packed by another process of the same run."""
    return pickle.loads(zlib.decompress(data))  # noqa: S301 - from the cluster, which runs what it is sent anyway


def carry_out(packed: bytes, device: str) -> bytes:
    """Do a stage on this machine, tried again by its policy.

    Args:
        packed: the stage, its arguments and its keyword arguments.
        device: what `auto` means in this run.

    Returns:
        A packed `Done`.
    """
    stage, args, kwargs = unpack(packed)
    use_all_cores()
    with recording() as ledger, _warnings() as heard, auto_means(device):
        value = _in_words(stage, args, kwargs)
    return pack(Done(value, ledger.retried, tuple(heard)))


def _in_words(stage: Stage[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Do a stage; its error travels alone, without what caused it, and in words where it could not travel at all."""
    label = stage.label_of(*args, **kwargs)
    try:
        return patiently(label, lambda: stage(*args, **kwargs), stage.policy)
    except Exception as error:
        failure = error
    try:
        pickle.loads(pickle.dumps(failure))  # noqa: S301 - made one line above
    except Exception:
        failure = ClusterError(f"{label}: {type(failure).__name__}: {failure}")
    failure.__cause__ = failure.__context__ = None
    raise failure


@contextmanager
def _warnings() -> Iterator[list[tuple[str, int, str]]]:
    """Collect what the library warns of inside the block, up to a number that is still read."""
    found: list[tuple[str, int, str]] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(found) < _FEW:
                found.append((record.name, record.levelno, record.getMessage()))

    logger, collector = logging.getLogger(_OURS), Collector(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield found
    finally:
        logger.removeHandler(collector)


@contextmanager
def probe(url: str) -> Iterator[str]:
    """Put an object into a store as long as the block lasts, and give its name, for every node to look for."""
    store, name = Store(url), f"{PROBES}/{uuid.uuid4().hex}"
    store.objects.create(name, b"probe")
    try:
        yield name
    finally:
        store.objects.delete([name])


def look(url: str, name: str) -> tuple[str, str | None]:
    """Return this machine's version of impart, and what is wrong with the store as seen from here, if anything."""
    try:
        seen = Store(url).objects.read(name, _FEW) is not None
    except Exception as error:
        return __version__, str(error) or type(error).__name__
    return __version__, None if seen else "what this run just wrote there is not there"
