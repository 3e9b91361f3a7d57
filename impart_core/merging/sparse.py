"""Sparsified deltas, a block at a time, scaled to make up for what was dropped."""

from typing import Literal

import torch

from impart_core.merging.blocks import Entries, blocks

# How kept entries are scaled. True: so that the delta keeps its L1 norm, as mergekit does. "expectation": divided by
# the probability that they are kept, so that the expectation over seeds is the delta itself, as the papers do.
Rescale = bool | Literal["expectation"]


def sparse(delta: torch.Tensor, keep: torch.Tensor) -> Entries:
    """Return what gives the entries of a delta times those of a mask, both of one shape."""
    flat, kept = delta.reshape(-1), keep.reshape(-1)
    return lambda block: flat[block] * kept[block]


def rescaled(entries: Entries, delta: torch.Tensor) -> Entries:
    """Return what gives the entries of a sparsified delta, scaled to the L1 norm of the whole one, if not nought."""
    flat = delta.reshape(-1)
    before = sum(float(flat[block].abs().sum()) for block in blocks(delta))
    after = sum(float(entries(block).abs().sum()) for block in blocks(delta))
    scale = before / after if after > 0 else 1.0
    return lambda block: entries(block).mul_(scale)
