"""Rounding entry after entry, errors made up for in the entries to come: GPTQ (Frantar et al. 2022).

The error of vectors is taken in a metric, ‖a‖² = aᵀ·M·a. With e_i the error of entry i and M⁻¹ = UᵀU, U upper
triangular, it is least where entries j to come are moved by −e_i·U_ij/U_ii, as far as rounding is fine. With about a
bit an entry errors are as large as entries, and a share of that is better (docs/methods.md).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

_BLOCK = 64  # entries whose errors are gathered before they go to the entries after them, in one product

# Is given the number of an entry and what is to be rounded there, which it may mask in place; fills in what it becomes.
Round = Callable[[int, torch.Tensor, torch.Tensor], object]
# Gives what an error of entries takes from other entries, U_ij/U_ii or a share of it, (block, others).
Spread = Callable[[slice, slice], torch.Tensor]


def fed_back(values: torch.Tensor, spread: Spread, round_entry: Round) -> Iterator[tuple[slice, torch.Tensor]]:
    """Round vectors in place, and yield the errors of each block of entries, (block, rows), once they are made up for.

    Args:
        values: entries first, so that each is contiguous, float32, (n, rows); rows do not depend on each other.
        spread: what errors take from entries to come.
        round_entry: rounds one entry of all rows.
    """
    for start in range(0, len(values), _BLOCK):
        block, rest = slice(start, start + _BLOCK), slice(start + _BLOCK, None)
        errors = torch.zeros_like(values[block])
        done = errors.T  # those to come are zero as yet
        columns = values[block].unbind(), errors.unbind(), spread(block, block).T.contiguous().unbind()
        for j, (value, error, into) in enumerate(zip(*columns, strict=True), start):
            target = torch.addmv(value, done, into, alpha=-1)
            round_entry(j, target, value)
            torch.sub(target, value, out=error)
        values[rest].addmm_(spread(block, rest).T, errors, alpha=-1)
        yield block, errors


@dataclass(frozen=True)
class Metric:
    """A product of vectors ⟨a, b⟩ = aᵀ·M·b, and what an error of one entry is made up for by in others.

    Attributes:
        matrix: M, symmetric, positive definite, float32, (n, n).
        spread: a share of U_ij/U_ii above the diagonal, else zero, float32, (n, n).
    """

    matrix: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def of(cls, matrix: torch.Tensor, inverse: torch.Tensor, share: float) -> "Metric":
        """Return the metric of a matrix, float64, whose inverse is known; of errors a share is made up for, 0 to 1."""
        upper = torch.linalg.cholesky(inverse, upper=True)
        return cls(matrix.float(), (share * upper / upper.diagonal()[:, None]).triu_(1).float())

    def rounded(self, entries: torch.Tensor, most: int) -> torch.Tensor:
        """Return the integers that stand for entries in units of a step, float32, (rows, n), `most` in size at most."""

        def round_entry(_: int, target: torch.Tensor, value: torch.Tensor) -> None:
            torch.round(target, out=value).clamp_(-most, most)

        values = entries.T.contiguous()
        for _ in fed_back(values, lambda block, others: self.spread[block, others], round_entry):
            pass
        return values.T
