"""The tokens of models, read from their tokenizers, and tokenizers with further tokens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from impart_core.base.errors import ConfigError, MismatchError
from impart_core.base.foreign import explained_failures
from impart_core.base.text import visible
from impart_core.checkpoint.index import CONFIG, Checkpoint
from impart_core.checkpoint.source import SourceFile
from impart_core.checkpoint.tokenizer import (
    FAST,
    SETTINGS,
    is_of_tokenizer,
    load_tokenizer,
    open_tokenizer,
    tokens_digest,
)
from impart_core.merging.chat import in_memory
from impart_core.merging.sources import Source

_OF_PLACE = ("is_local", "local_files_only", "name_or_path")  # settings that say where a tokenizer was loaded from
_SHOWN = 6


@dataclass(frozen=True)
class Tokens:
    """The tokens of a tokenizer.

    Attributes:
        ids: the id of each, in the order of ids.
        added: those that were added to what it was trained to, and their settings (`tokenizers.AddedToken`).
    """

    ids: Mapping[str, int] = field(repr=False)
    added: Mapping[str, Any] = field(repr=False)

    @property
    def size(self) -> int:
        """The rows that an embedding needs to have one for each."""
        return max(self.ids.values(), default=-1) + 1


def read_tokens(sources: Sequence[Source]) -> dict[str, Tokens]:
    """Return the tokens of each model that has a tokenizer, by what the file calls it; each tokenizer is loaded once.

    Raises:
        MismatchError: transformers does not load one of them.
    """
    loaded: dict[str, Tokens] = {}
    found = {}
    for source in sources:
        digest = tokens_digest(source.checkpoint)
        if digest is not None:
            if digest not in loaded:
                loaded[digest] = tokens_of(open_tokenizer(source.checkpoint, MismatchError))
            found[source.label] = loaded[digest]
    return found


def tokens_of(tokenizer: Any) -> Tokens:
    """Return the tokens of a tokenizer of transformers."""
    ids = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    added = {one.content: one for _, one in sorted(tokenizer.added_tokens_decoder.items())}
    return Tokens(dict(ids), added)


def counted_tokens(checkpoint: Checkpoint) -> int | None:
    """Return the rows that an embedding needs for a checkpoint's tokens, without loading its tokenizer.

    None where it is stored in another form than that of the `tokenizers` library.
    """
    file = checkpoint.carried.get(FAST)
    try:
        stored = json.loads(bytes(file.read(0, file.size))) if file else {}
        vocabulary = stored["model"]["vocab"]
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        return int(max([*ids, *(one["id"] for one in stored["added_tokens"]), -1])) + 1
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def extended(checkpoint: Checkpoint, added: Sequence[Any]) -> tuple[Tokens, dict[str, SourceFile]]:
    """Return a tokenizer with further tokens, as its tokens and its files.

    Args:
        checkpoint: has the tokenizer that is extended.
        added: what is added, as `tokenizers.AddedToken` or text; a token that it has gets these settings.

    Raises:
        ConfigError: transformers does not load the extended tokenizer with these tokens.
    """
    tokenizer = open_tokenizer(checkpoint, MismatchError)
    advice = "Give the place of a model as tokenizer_source."
    doing = f"Tokens cannot be added to the tokenizer of {checkpoint.location}"
    with explained_failures(doing, lambda: advice, ConfigError), TemporaryDirectory() as folder:
        tokenizer.add_tokens(list(added))
        tokenizer.save_pretrained(folder)
        files = {
            name: in_memory(name, _placeless(name, path.read_bytes()))
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file() and is_of_tokenizer(name := path.relative_to(folder).as_posix())
        }
    made = tokens_of(tokenizer)
    config = {CONFIG: checkpoint.carried[CONFIG]} if CONFIG in checkpoint.carried else {}
    again = tokens_of(load_tokenizer({**files, **config}, checkpoint.location, ConfigError))
    if again.ids != made.ids:
        lost = dict(made.ids.items() - again.ids.items())
        raise ConfigError(f"{doing}: it loses {told_tokens(list(lost) or list(again.ids))}. {advice}")
    return made, dict(files)


def _placeless(name: str, data: bytes) -> bytes:
    """Return a file of a tokenizer without what it tells of the folder that it was loaded from."""
    if name != SETTINGS:
        return data
    settings = {key: value for key, value in json.loads(data).items() if key not in _OF_PLACE}
    return (json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def told_tokens(tokens: Sequence[str]) -> str:
    """Return some tokens as a sentence names them: the first ones, and how many more there are."""
    shown = ", ".join(f"'{visible(token)}'" for token in tokens[:_SHOWN])
    return shown + (f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else "")
