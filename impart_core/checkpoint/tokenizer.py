"""A checkpoint's tokenizer: which of its files make it, and it, as transformers loads it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from impart_core.base.canonical import digest_of
from impart_core.base.errors import ImpartError
from impart_core.base.foreign import explained_failures
from impart_core.checkpoint.carried import is_code
from impart_core.checkpoint.digest import file_digest
from impart_core.checkpoint.index import CONFIG, Checkpoint
from impart_core.checkpoint.source import SourceFile

FAST, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_ADDED, _ADDED_SETTINGS = "added_tokens.json", "added_tokens_decoder"
# Any of them makes a tokenizer; the first is what the `tokenizers` library reads, the others are turned into it.
_VOCABULARY = re.compile(
    r"tokenizer\.json|tekken\.json|(vocab|encoder)\.(json|txt|bpe)|.*\.(model(\.v\d+)?|spm|tiktoken|vocab|bpe|codes)"
)
_BESIDE = re.compile(
    r"tokenizer_config\.json|(special_tokens_map|added_tokens|normalizer|chat_template)\.json|merges\.txt|"
    r"chat_template\.jinja|additional_chat_templates/.*|tokenization_\w+\.py"
)


def is_vocabulary(name: str) -> bool:
    """Return whether a file of this name holds the tokens of a tokenizer."""
    return bool(_VOCABULARY.fullmatch(name))


def is_of_tokenizer(name: str) -> bool:
    """Return whether a file of this name is a part of a tokenizer, its chat template among them."""
    return is_vocabulary(name) or bool(_BESIDE.fullmatch(name))


def tokens_digest(checkpoint: Checkpoint) -> str | None:
    """Return a digest of what a checkpoint's tokens and their ids follow from; None where it has no tokenizer.

    Nothing is loaded: with the same digest tokenizers have the same tokens, with others they may still have.
    """
    files = checkpoint.carried
    names = [name for name in files if is_vocabulary(name)]
    if not names:
        return None
    named = {name: file_digest(files[name]) for name in ([FAST] if FAST in files else names)}
    added = read_settings(files).get(_ADDED_SETTINGS)
    contents = {number: _content(one) for number, one in added.items()} if isinstance(added, Mapping) else {}
    return digest_of([named, contents, file_digest(files[_ADDED]) if _ADDED in files else None])


def _content(added: Any) -> str:
    return str(added.get("content")) if isinstance(added, Mapping) else str(added)


def read_settings(files: Mapping[str, SourceFile]) -> dict[str, Any]:
    """Return the settings of a tokenizer; none where its file is missing, or none that transformers would read."""
    file = files.get(SETTINGS)
    try:
        settings = json.loads(bytes(file.read(0, file.size))) if file else {}
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def open_tokenizer(checkpoint: Checkpoint, kind: type[ImpartError]) -> Any:
    """Load a tokenizer from copies of its files, wherever the checkpoint lies; no code of it is run.

    Args:
        checkpoint: the checkpoint.
        kind: the error to raise.

    Raises:
        ImpartError: of this kind: transformers does not load it.
    """
    files = {name: file for name, file in checkpoint.carried.items() if is_of_tokenizer(name) or name == CONFIG}
    return load_tokenizer(files, checkpoint.location, kind)


def load_tokenizer(files: Mapping[str, SourceFile], location: str, kind: type[ImpartError]) -> Any:
    """Load a tokenizer of these files, which are those of a place; else as `open_tokenizer`."""
    advice = "Save it there again with `save_pretrained`."
    with (
        explained_failures(f"The tokenizer of {location} cannot be loaded", lambda: advice, kind),
        TemporaryDirectory(prefix="impart-tokenizer-") as folder,
    ):
        from transformers import AutoTokenizer

        for name, file in files.items():
            if not is_code(name):
                (Path(folder) / name).parent.mkdir(exist_ok=True)
                file.copy_to(Path(folder) / name)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
