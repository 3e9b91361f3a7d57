"""Preflight: whether a base and a fine-tuned checkpoint belong together, from headers and configs alone."""

import re
from collections.abc import Iterable, Mapping

from impart_core.base.errors import IncompleteError, MismatchError
from impart_core.base.text import visible
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Role, in_layer, layers_of, role_of
from impart_core.checkpoint.model import UnknownModelError, find_gaps
from impart_core.checkpoint.pairing import Pair, Pairs, pair_tensors

# Told along with what does not fit; by themselves they may differ: a grown vocabulary, another head, other ties.
_TOLD_KEYS = ("architectures", "vocab_size", "tie_word_embeddings")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def preflight(base: Checkpoint, finetuned: Checkpoint) -> dict[str, Pair]:
    """Compare two checkpoints tensor by tensor, and their configurations; return the pairs that they make.

    Rows added to an embedding or a head fit, and so does what only one side has, unless it is a projection of a
    layer. The fine-tune may be a part of the base: the language model of one that sees as well.

    Raises:
        MismatchError: one message that lists every mismatch; those that are the same in each layer share a line.
    """
    pairs, part = pair_tensors(base, finetuned), _is_part(base, finetuned)
    lines = [*([] if part else _differing(base, finetuned, ("model_type",))), *_tensor_mismatches(base, pairs, part)]
    if not lines:
        return pairs
    found = [*_differing(base, finetuned, _TOLD_KEYS), *lines]
    raise MismatchError(
        f"The fine-tuned checkpoint {finetuned.location} does not fit the base {base.location} "
        f"({len(found)} mismatch{'es' * (len(found) > 1)}):\n{_listed(found)}\n{_advice(base, finetuned, pairs, lines)}"
    )


def require_complete(finetuned: Checkpoint, base: Checkpoint) -> tuple[str, ...]:
    """Refuse a fine-tune that lacks what its model needs: transformers would fill it with random values.

    Returns:
        a sentence where it could not be checked.

    Raises:
        CheckpointError: the message names every tensor that is missing, and those that have another shape.
    """
    try:
        gaps = find_gaps(finetuned)
    except UnknownModelError as error:
        return (f"It was not checked that {finetuned.location} holds all that its model needs: {error}.",)
    lines = [f"{name}: missing" + (", the base has it" if name in base.tensors else "") for name in gaps.missing]
    lines += [f"{name}: shape {list(ours)}, by the configuration {list(own)}" for name, ours, own in gaps.misfits]
    if lines:
        named = next(iter(finetuned.config.get("architectures") or ()), finetuned.config.get("model_type"))
        raise IncompleteError(
            f"{finetuned.location} does not hold all that its configuration ({visible(str(named))}) needs; "
            f"transformers would fill it with random values, or not load it:\n{_listed(lines)}\nCopy all of the "
            "checkpoint, or save it again. "
            "If its config.json is wrong, correct that (tie_word_embeddings says whether the head is the embedding)."
        )
    return ()


def _is_part(base: Checkpoint, finetuned: Checkpoint) -> bool:
    """Whether the fine-tune is of the kind of a part of the base, by the configurations."""
    kinds = {value.get("model_type") for value in base.config.values() if isinstance(value, Mapping)} - {None}
    return finetuned.config.get("model_type") in kinds


def _listed(lines: Iterable[str]) -> str:
    """Return the lines, those that differ by numbers alone as one; one that has no like keeps its number."""
    like: dict[str, list[str]] = {}
    for line in lines:
        like.setdefault(_NUMBER.sub("*", line), []).append(line)
    return "\n".join(
        f"  - {visible(found[0])}" if len(found) == 1 else f"  - {visible(pattern)} ({len(found)} times)"
        for pattern, found in like.items()
    )


def _advice(base: Checkpoint, finetuned: Checkpoint, pairs: Pairs, lines: list[str]) -> str:
    """Return what to do about mismatches, by what they are."""
    for side, other in ((base, finetuned), (finetuned, base)):
        empty = [name for name, info in side.tensors.items() if info.shape == (0,)]
        if any(name in other.tensors and other.tensors[name].numel for name in empty):
            return (
                f"{len(empty)} tensors of {side.location} are empty, as DeepSpeed's ZeRO-3 leaves those that were not "
                "gathered before saving. Make the weights with `zero_to_fp32.py`, or save with "
                "`stage3_gather_16bit_weights_on_model_save`."
            )
    same = base.config.get("model_type") == finetuned.config.get("model_type")
    ours, theirs = (next(filter(in_layer, side.tensors), None) for side in (base, finetuned))
    if same and ours and theirs and not any(pair.base and in_layer(name) for name, pair in pairs.items()):
        return (
            f"None of the names of their layers' tensors is told from the other's ({ours!r} in the base, {theirs!r} in "
            "the fine-tuned). If they are of one model, load both and save both with the same version of transformers."
        )
    if same and all(line.endswith("only in the base") for line in lines):
        return "The fine-tuned checkpoint lacks them. Copy all of it, or give the base that it was fine-tuned from."
    return "Give the base that it was fine-tuned from."


def _differing(base: Checkpoint, finetuned: Checkpoint, keys: tuple[str, ...]) -> list[str]:
    lines = []
    for key in keys:
        ours, theirs = base.config.get(key), finetuned.config.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            lines.append(f"{key}: base {ours!r}, fine-tuned {theirs!r}")
    return lines


def _tensor_mismatches(base: Checkpoint, pairs: Pairs, part: bool) -> list[str]:
    used = {pair.base.name for pair in pairs.values() if pair.base}
    shared = {layers_of(name) for name in used}
    lines = [
        f"{name}: only in the base"
        for name, info in base.tensors.items()
        if name not in used and in_layer(name) and role_of(info, base.config) is Role.PROJECTION
        if not part or layers_of(name) in shared
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
