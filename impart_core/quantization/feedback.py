"""Rounding entry after entry, errors made up for in the entries to come: GPTQ (Frantar et al. 2022) on vectors.

The error of vectors is taken in a metric, ‖a‖² = aᵀ·M·a. With e_i the error of entry i and M⁻¹ = UᵀU, U upper
triangular, it is least where entries j to come are moved by −e_i·U_ij/U_ii, as far as rounding is fine. With about a
bit an entry errors are as large as entries, and a share of that is better (docs/methods.md).
"""

from dataclasses import dataclass

import torch

_BLOCK = 64  # entries whose errors are gathered before they go to the entries after them, in one product


@dataclass(frozen=True)
class Metric:
    """A product of vectors ⟨a, b⟩ = aᵀ·M·b, and what an error of one entry is made up for by in others.

    Attributes:
        matrix: M, symmetric, positive definite, float32, (n, n).
        spread: a share of U_ij/U_ii above the diagonal, else zero, float32, (n, n); None: nothing is made up for.
    """

    matrix: torch.Tensor
    spread: torch.Tensor | None = None

    @classmethod
    def of(cls, matrix: torch.Tensor, inverse: torch.Tensor, share: float) -> "Metric":
        """Return the metric of a matrix, float64, whose inverse is known; of errors a share is made up for, 0 to 1."""
        if not share:
            return cls(matrix.float())
        upper = torch.linalg.cholesky(inverse, upper=True)
        return cls(matrix.float(), (share * upper / upper.diagonal()[:, None]).triu_(1).float())

    def rounded(self, entries: torch.Tensor, most: int) -> torch.Tensor:
        """Return the integers that stand for entries in units of a step, float32, (rows, n), `most` in size at most.

        Rows do not depend on each other.
        """
        if self.spread is None:
            return entries.round().clamp_(-most, most)
        values = entries.T.contiguous()
        for start in range(0, len(values), _BLOCK):
            block, rest = slice(start, start + _BLOCK), slice(start + _BLOCK, None)
            errors = torch.zeros_like(values[block])
            done = errors.T  # those to come are zero as yet
            columns = self.spread[block, block].T.contiguous()
            for value, error, into in zip(values[block].unbind(), errors.unbind(), columns.unbind(), strict=True):
                target = torch.addmv(value, done, into, alpha=-1)
                torch.round(target, out=value).clamp_(-most, most)
                torch.sub(target, value, out=error)
            values[rest].addmm_(self.spread[block, rest].T, errors, alpha=-1)
        return values.T
