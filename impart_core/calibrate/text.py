"""Calibration text as tokens: sequences of one length, cut from documents that follow each other."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import Field

from impart_core.base.errors import CalibrationError
from impart_core.base.settings import Frozen
from impart_core.calibrate.documents import check_source, is_one_text, read_documents
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.tokenizer import open_tokenizer

logger = logging.getLogger(__name__)

PUBLISHED = "artifact:"  # before the name or id of calibration text that a store holds as tokens
SEQUENCES, LENGTH = 128, 2048  # the latter where the model can take that many
_POSITION_KEYS = ("max_position_embeddings", "n_positions")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")  # any of them makes one


class CalibrationText(Frozen):
    """Which text a model is calibrated on.

    Attributes:
        source: a text file; a `.jsonl` file with the field `text`; `hub:org/name[:config[:split[:field]]]`, a data set
            of the Hub (split `train`, field `text`); `tinyzoo:math`, `tinyzoo:code` or `tinyzoo:chat`; or
            `artifact:ID`, calibration text that the store holds, of which all is taken.
        sequences: how many sequences.
        length: tokens of each; None: 2048, or as many as the model can take where that is fewer.
    """

    source: str
    sequences: int = Field(default=SEQUENCES, ge=1)
    length: int | None = Field(default=None, ge=2)


def check_text(text: CalibrationText, finetuned: Checkpoint) -> None:
    """Refuse what can be told to be wrong without reading text.

    Raises:
        CalibrationError: the source's form is not known, there is no such file or it is empty, sequences are longer
            than the model can take, or the checkpoint has no tokenizer.
        UnknownNameError: the tiny zoo has no such task.
    """
    if text.source.startswith(PUBLISHED):
        return
    check_source(text.source)
    _length(text, finetuned)
    _require_tokenizer(finetuned)


def read_tokens(text: CalibrationText, finetuned: Checkpoint) -> torch.Tensor:
    """Read text with the fine-tune's own tokenizer and cut it into sequences.

    Documents follow each other with the tokenizer's end token after each, if it has one; sequences may begin and end
    anywhere. Each begins with the token that the tokenizer begins every text with, if it does so: models lean on it.
    No more is read than it takes. A warning says when there are fewer sequences than asked for.

    Args:
        text: which text.
        finetuned: the fine-tuned checkpoint.

    Returns:
        token ids, int32, (sequences, length).

    Raises:
        CalibrationError: the text or the tokenizer cannot be read, the text is shorter than one sequence, or the
            tokenizer is not the model's.
        UnknownNameError: the tiny zoo has no such task.
    """
    check_text(text, finetuned)
    tokenizer, length, tokens = open_tokenizer(finetuned, CalibrationError), _length(text, finetuned), list[int]()
    first = _beginning(tokenizer)
    taken = length - len(first)
    for ids in _token_ids(text.source, tokenizer):
        tokens += ids
        if len(tokens) >= text.sequences * taken:
            break
    sequences = min(len(tokens) // taken, text.sequences)
    if not sequences:
        raise CalibrationError(
            f"The calibration text {text.source} has {len(tokens)} tokens, and one sequence takes {taken}. Give more "
            "text or a smaller length."
        )
    if sequences < text.sequences:
        logger.warning("%s has text for %d sequences of the %d asked for", text.source, sequences, text.sequences)
    chosen = torch.tensor(tokens[: sequences * taken], dtype=torch.int32).reshape(sequences, taken)
    chosen = torch.cat([torch.tensor(first, dtype=torch.int32).expand(sequences, -1), chosen], dim=1)
    require_taken(chosen, finetuned)
    return chosen


def require_tokens(tokens: torch.Tensor) -> None:
    """Refuse what are no token ids.

    Raises:
        CalibrationError: they are not whole numbers from 0 on, or not sequences of one length, (sequences, length).
    """
    whole = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype is torch.bool)
    if tokens.dim() != 2 or not tokens.numel() or not whole or int(tokens.min()) < 0:
        raise CalibrationError(
            f"Calibration takes token ids, whole numbers from 0 on, of the shape (sequences, length); these are "
            f"{tokens.dtype} of the shape {list(tokens.shape)}. Give a tokenizer's input_ids."
        )


def tokens_digest(tokens: torch.Tensor) -> str:
    """Return the SHA-256 (hex) of token ids' shape and values, which fit in 32 bits."""
    values = tokens.to(torch.int32).cpu().contiguous().numpy().astype("<i4")
    return hashlib.sha256(f"{list(tokens.shape)}".encode() + values.tobytes()).hexdigest()


def _token_ids(source: str, tokenizer: Any) -> Iterator[list[int]]:
    end = [] if tokenizer.eos_token_id is None or is_one_text(source) else [int(tokenizer.eos_token_id)]
    for document in read_documents(source):
        if document:
            yield [*tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"], *end]


def _beginning(tokenizer: Any) -> list[int]:
    """Return the begin token where the tokenizer itself puts it before a text, else nothing."""
    begin = tokenizer.bos_token_id
    usual, plain = (tokenizer("a", add_special_tokens=added)["input_ids"][:1] for added in (True, False))
    return [int(begin)] if begin is not None and usual == [begin] != plain else []


def _require_tokenizer(finetuned: Checkpoint) -> None:
    if not any(name in finetuned.carried for name in _TOKENIZERS):
        raise CalibrationError(
            f"{finetuned.location} has no tokenizer files, which calibration reads text with. Save the tokenizer there "
            "with `save_pretrained`."
        )


def require_taken(tokens: torch.Tensor, finetuned: Checkpoint, least: int = 1) -> None:
    """Refuse token ids that the model does not have, and sequences that are too long for it or too short.

    Args:
        tokens: token ids, (sequences, length).
        finetuned: the fine-tuned checkpoint.
        least: tokens that a sequence needs: 2 where the one that follows is predicted.

    Raises:
        CalibrationError: naming the highest of them, or the length.
    """
    length = tokens.shape[1]
    if length < least:
        raise CalibrationError(
            f"Calibration sequences have {length} token{'' if length == 1 else 's'}, and with these settings it takes "
            f"{least} at least: each token is predicted from those before it. Give longer ones."
        )
    _require_fitting(length, finetuned)
    size, highest = _setting(finetuned.config, ("vocab_size",)), int(tokens.max())
    if size is not None and highest >= size:
        raise CalibrationError(
            f"The calibration text has the token id {highest}, but the model has {size} tokens. The tokenizer in "
            f"{finetuned.location}, or whoever gave the ids, is another model's: take the model's own."
        )


def _length(text: CalibrationText, finetuned: Checkpoint) -> int:
    if text.length is None:
        return min(LENGTH, _setting(finetuned.config, _POSITION_KEYS) or LENGTH)
    _require_fitting(text.length, finetuned)
    return text.length


def _require_fitting(length: int, finetuned: Checkpoint) -> None:
    """Refuse sequences of more tokens than the model takes at once."""
    most = _setting(finetuned.config, _POSITION_KEYS)
    if most is not None and length > most:
        raise CalibrationError(
            f"Calibration sequences of {length} tokens are asked for, and {finetuned.location} takes {most} at most. "
            "Ask for shorter ones."
        )


def _setting(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    """Return the first of these settings that is there, in the configuration or in its part for text."""
    parts = (config, config.get("text_config"))
    values = (part.get(key) for part in parts if isinstance(part, Mapping) for key in keys)
    return next((value for value in values if isinstance(value, int)), None)
