"""What tests of every method ask about codes, and the deltas that are hard to compress."""

import torch

from impart_core.sparsify.base import Codes


def nbytes(codes: Codes) -> int:
    """Return the bytes of all parts."""
    return sum(code.numel() * code.element_size() for code in codes.values())


def same(one: Codes, other: Codes) -> bool:
    """Return whether two sets of codes are equal, part by part."""
    return one.keys() == other.keys() and all(torch.equal(one[part], other[part]) for part in one)


def one_entry(m: int, n: int, at: int, value: float = -0.25) -> torch.Tensor:
    """Return a delta of shape (m, n) that is zero but for the entry at this position of the flattened matrix."""
    delta = torch.zeros(m * n)
    delta[at % (m * n)] = value
    return delta.reshape(m, n)
