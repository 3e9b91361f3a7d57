"""The base that a delta is put on: the one that is named, else where it lay when the delta was made."""

from pathlib import Path

from impart_core.apply.reader import require_base
from impart_core.artifacts.delta import Delta
from impart_core.base.errors import CheckpointError, ConfigError, UnreachableError, WrongBaseError
from impart_core.checkpoint.index import Checkpoint
from impart_core.engine.preflight import open_side
from impart_core.engine.requests import absolute


def base_of(delta: Delta, place: str | Path | None = None) -> Checkpoint:
    """Open a delta's base, having checked by content that it is the one that the delta was made against.

    Args:
        delta: the delta.
        place: where its base lies; None: where it lay when the delta was made.

    Raises:
        ConfigError: no place is named, and the recorded one is missing or holds no such base.
        CheckpointError: the base that is named cannot be opened.
        WrongBaseError: it is another one.
    """
    if place:
        return _opened(delta, absolute(place))
    made, recorded = delta.manifest.id[:12], delta.manifest.provenance.place("base")
    if not recorded:
        raise ConfigError(f"The delta {made} does not say where its base lay. Give it with --base, or as base=….")
    try:
        return _opened(delta, recorded)
    except UnreachableError:
        raise
    except (CheckpointError, WrongBaseError) as error:
        raise ConfigError(
            f"No base is named, and where that of {made} lay it is not found: {error} If it has moved, say where to: "
            "--base, or base=…."
        ) from error


def _opened(delta: Delta, place: str) -> Checkpoint:
    checkpoint = open_side(place)
    require_base(delta, checkpoint)
    return checkpoint
