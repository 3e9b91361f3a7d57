"""Which of two checkpoints is the base: given twice, or the wrong way round."""

import re
from collections.abc import Mapping
from typing import Any

from impart_core.base.errors import CheckpointError, ConfigError
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.location import model_name
from impart_core.checkpoint.source import SourceFile

_FRONT = re.compile(r"\A---\s*\n(?P<yaml>.*?)\n---", re.DOTALL)
_BASE_MODEL = re.compile(r"^base_model:(?P<same>[^\n]*)(?P<below>(\n\s*-[^\n]*)*)", re.MULTILINE)
_TUNED = re.compile(r"[-_.](instruct|chat|it|sft|dpo|rlhf|ft|finetuned?|tuned)\b")
_MOST_OF_A_CARD = 64 << 10


def require_different(base: Checkpoint, finetuned: Checkpoint) -> None:
    """Refuse one checkpoint that is given as both.

    Raises:
        ConfigError: both have the same files.
    """
    ours, theirs = ({info.file.address for info in side.tensors.values()} for side in (base, finetuned))
    if ours == theirs:
        raise ConfigError(
            f"{base.location} is given as the base and as the fine-tuned checkpoint. Give the base first, then the "
            "checkpoint that was fine-tuned from it."
        )


def swapped(base: Checkpoint, finetuned: Checkpoint) -> tuple[str, ...]:
    """Return a sentence where a model card, a configuration or the names say that the two are the wrong way round."""
    ours, theirs = model_name(base.location), model_name(finetuned.location)
    if ours in _bases_of(finetuned):
        return ()
    if theirs in _bases_of(base):
        why = f"{base.location} says that its own base is {theirs!r}"
    elif ours.startswith(theirs) and _TUNED.match(ours.removeprefix(theirs)):
        why = f"the base's name is that of the fine-tuned checkpoint with {ours.removeprefix(theirs)!r} after it"
    else:
        return ()
    return (f"Base and fine-tuned checkpoint seem to be the wrong way round: {why}. Give the base first.",)


def _bases_of(checkpoint: Checkpoint) -> set[str]:
    """Return the names of what a checkpoint was fine-tuned from, without owners, by its card and its configuration."""
    named = bases_named(checkpoint.config, checkpoint.card)
    return {text.rstrip("/").rpartition("/")[2].lower() for text in named}


def bases_named(config: Mapping[str, Any], card: SourceFile | None) -> tuple[str, ...]:
    """Return what a checkpoint says that it was fine-tuned from, its card before its configuration.

    Args:
        config: its configuration, or that of an adapter.
        card: its model card.
    """
    try:
        text = bytes(card.read(0, min(card.size, _MOST_OF_A_CARD))).decode(errors="replace") if card else ""
    except CheckpointError:  # a hint is not worth an error
        text = ""
    front = _FRONT.search(text)
    found = _BASE_MODEL.search(front["yaml"]) if front else None
    named = [found["same"], *found["below"].split("\n")] if found else []
    named += [str(config.get(key) or "") for key in ("base_model_name_or_path", "_name_or_path")]
    plain = (one.strip(" -'\"\t\r[]") for one in named)
    return tuple(dict.fromkeys(one for one in plain if one))
