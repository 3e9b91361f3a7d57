"""The lossy delta that residuals are to be against: whether it is one of these checkpoints, and the memory it takes."""

import math
from collections.abc import Sequence

from impart_core.artifacts.block import block_content
from impart_core.artifacts.delta import Delta, open_delta
from impart_core.base.errors import ConfigError, WrongBaseError
from impart_core.blocks.request import LOSSLESS
from impart_core.checkpoint.layout import Block
from impart_core.checkpoint.pairing import Pair, Pairs
from impart_core.engine.requests import CompressRequest, PlanRequest
from impart_core.methods.terms import PRODUCT_BYTES
from impart_core.store.names import resolve
from impart_core.store.store import Store

# Of a matrix that is rebuilt: what its codes become (factors in float32 and float64; masks, positions and values of
# entries), its delta, and its sum with the base in float32. Measured, for the method that takes the most.
_REBUILT_BYTES_PER_ENTRY = 32


def open_over(request: CompressRequest | PlanRequest) -> Delta | None:
    """Open the lossy delta that residuals are to be against, if any.

    Raises:
        ArtifactNotFoundError: there is none of this name or id.
        ConfigError: it is no lossy delta, or the request is for no residual.
    """
    if request.over is None:
        return None
    if not request.config.is_lossless:
        raise ConfigError(
            f"A residual to {request.over!r} (over) is stored by method {LOSSLESS} alone, not by "
            f"{request.config.method!r}. Leave it out, or use that method."
        )
    store = Store(request.store)
    delta = open_delta(store, resolve(store, request.over))
    if delta.is_lossless:
        raise ConfigError(
            f"{request.over!r} is lossless itself, so that nothing is left for a residual. Give a lossy delta (over), "
            "or leave it out."
        )
    return delta


def require_same_tensors(over: Delta, blocks: Sequence[Block], pairs: Pairs) -> None:
    """Check by names, shapes and dtypes alone that a lossy delta may be of a fine-tuned checkpoint.

    Raises:
        ConfigError: it is of another one.
    """
    stored = {
        content.name: {name: (entry.shape, entry.dtype) for name, entry in content.tensors.items()}
        for content in map(block_content, over.blocks)
    }
    if stored != {
        block.name: {name: (pairs[name].finetuned.shape, pairs[name].finetuned.dtype) for name in block.tensors}
        for block in blocks
    }:
        raise _another_finetune(over)


def require_same_sides(over: Delta, base: str, finetuned: str) -> None:
    """Check that a lossy delta is of these checkpoints, by their ids.

    Raises:
        WrongBaseError: it was made from another base.
        ConfigError: it is of another fine-tune.
    """
    if over.content.base != base:
        raise WrongBaseError(
            f"The delta {over.id[:12]} (over) was made against another base: its tensors differ. Give one of this base."
        )
    if over.content.finetuned != finetuned:
        raise _another_finetune(over)


def _another_finetune(over: Delta) -> ConfigError:
    return ConfigError(
        f"The delta {over.id[:12]} (over) is of another fine-tuned checkpoint: its tensors differ. Give a lossy "
        "delta of this one: compress it first."
    )


def rebuilding_bytes(pair: Pair) -> int:
    """Memory of rebuilding a tensor from a lossy delta: both sides as stored, and one matrix at a time."""
    stored = pair.finetuned.nbytes + (pair.base.nbytes if pair.base else 0)
    matrices = pair.shape[0] if pair.is_stack else 1
    return stored + _REBUILT_BYTES_PER_ENTRY * math.prod(pair.shape) // max(1, matrices) + PRODUCT_BYTES
