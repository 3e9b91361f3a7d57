"""Preflight: whether a base and a fine-tuned checkpoint belong together, from headers and configs alone."""

import re
from collections import Counter

from impart_core.base.errors import MismatchError
from impart_core.base.text import visible
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Role, in_layer, role_of
from impart_core.checkpoint.pairing import Pair, pair_tensors

# Told along with what does not fit; by themselves they may differ: a grown vocabulary, another head, other ties.
_TOLD_KEYS = ("architectures", "vocab_size", "tie_word_embeddings")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def preflight(base: Checkpoint, finetuned: Checkpoint) -> dict[str, Pair]:
    """Compare two checkpoints tensor by tensor, and their configurations; return the pairs that they make.

    Rows added to an embedding or a head fit, and so does what only one side has, unless it is a projection of a
    layer.

    Raises:
        MismatchError: one message that lists every mismatch; those that are the same in each layer share a line.
    """
    pairs = pair_tensors(base, finetuned)
    found = [*_differing(base, finetuned, ("model_type",)), *_tensor_mismatches(base, pairs)]
    if not found:
        return pairs
    found = [*_differing(base, finetuned, _TOLD_KEYS), *found]
    lines = Counter(_NUMBER.sub("*", line) for line in found)
    listed = "\n".join(f"  - {visible(line)}" + (f" ({n} times)" if n > 1 else "") for line, n in lines.items())
    raise MismatchError(
        f"The fine-tuned checkpoint {finetuned.location} does not fit the base {base.location} "
        f"({len(found)} mismatches):\n{listed}\nGive the base that it was fine-tuned from."
    )


def _differing(base: Checkpoint, finetuned: Checkpoint, keys: tuple[str, ...]) -> list[str]:
    lines = []
    for key in keys:
        ours, theirs = base.config.get(key), finetuned.config.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            lines.append(f"{key}: base {ours!r}, fine-tuned {theirs!r}")
    return lines


def _tensor_mismatches(base: Checkpoint, pairs: dict[str, Pair]) -> list[str]:
    used = {pair.base.name for pair in pairs.values() if pair.base}
    lines = [
        f"{name}: only in the base"
        for name, info in base.tensors.items()
        if name not in used and in_layer(name) and role_of(info, base.config) is Role.PROJECTION
    ]
    for name, pair in pairs.items():
        ours, theirs = pair.base, pair.finetuned
        if ours is None:
            if pair.role is Role.PROJECTION:
                lines.append(f"{name}: only in the fine-tuned")
        elif not pair.fits:
            lines.append(f"{name}: shape {list(ours.shape)} in the base, {list(theirs.shape)} in the fine-tuned")
        elif ours.is_floating != theirs.is_floating:
            lines.append(f"{name}: dtype {ours.dtype} in the base, {theirs.dtype} in the fine-tuned")
    return lines
