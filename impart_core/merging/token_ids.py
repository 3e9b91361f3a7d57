"""Configurations of models whose tokens have other ids than before."""

import re
from collections.abc import Mapping
from typing import Any

from impart_core.base.errors import MismatchError

_SIZE = "vocab_size"
_OTHER_SIZES = re.compile(r"(?!type_vocab_size$)\w+_vocab_size|vocab_size_\w+")
_IDS = re.compile(r"(\w+_)?(token_ids?|token_index|suppress_tokens|bad_words_ids)")
_ABSENT = object()


def require_one_vocabulary(config: Mapping[str, Any], location: str) -> None:
    """Refuse a model that has several vocabularies, of whose sizes one alone would be changed.

    Raises:
        MismatchError: naming the setting.
    """
    parts = [config, *(value for key, value in config.items() if key == "text_config" and isinstance(value, Mapping))]
    for part in parts:
        for key, value in part.items():
            if _OTHER_SIZES.fullmatch(key) and isinstance(value, int) and value != part.get(_SIZE, value):
                raise MismatchError(
                    f"{location} has a second vocabulary ({key} {value}, beside {_SIZE} {part[_SIZE]}), whose tokens "
                    "cannot be given other ids. Merge models that have the same tokenizer, and leave out tokenizer."
                )


def resized(config: Mapping[str, Any], before: int, size: int) -> dict[str, Any]:
    """Return a configuration with another number of tokens, wherever it states the one before.

    Args:
        config: the configuration.
        before: the rows of the embedding that it describes.
        size: those of the merged one.
    """

    def of(part: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: of(value) if isinstance(value, Mapping) else size if key == _SIZE and value == before else value
            for key, value in part.items()
        }

    changed = of(config)
    return changed if before == size or changed != config else {**changed, _SIZE: size}


def renumbered(settings: Mapping[str, Any], ids: Mapping[int, int | None], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the ids of tokens (`eos_token_id`, `image_token_index`, …) changed.

    Args:
        settings: a model's configuration, or that of generation.
        ids: the new id of each old one; None: the token is gone. Other numbers stay.
        others: what the model has that the tokenizer is of, from which a setting is taken whose tokens are all gone.
    """
    changed: dict[str, Any] = {}
    for key, value in settings.items():
        theirs = others.get(key)
        if isinstance(value, Mapping):
            changed[key] = renumbered(value, ids, theirs if isinstance(theirs, Mapping) else {})
        elif _IDS.fullmatch(key):
            found = _renumbered(value, ids)
            changed[key] = theirs if found is _ABSENT else found
        else:
            changed[key] = value
    return changed


def _renumbered(value: Any, ids: Mapping[int, int | None]) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        found = ids.get(value, value)
        return _ABSENT if found is None else found
    if isinstance(value, list) and value:
        kept = [one for one in (_renumbered(one, ids) for one in value) if one is not _ABSENT]
        return kept or _ABSENT
    return value
