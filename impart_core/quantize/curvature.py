"""What the inputs of a linear module say of its weights: the damped Hessian, factored once for all that share it.

The output error of a weight change Δ, (rows, columns), is ½·tr(Δ·H·Δᵀ) with H = 2·X·Xᵀ averaged over tokens.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from impart_core.base.errors import TensorValueError

DAMPING = 0.01  # of the mean diagonal, as in the paper
_MOST_DAMPING = 1.0  # the last step; beyond it hardly anything of H is left
_STEP = 10.0


@dataclass(frozen=True)
class Curvature:
    """A Hessian with its damping, and the order in which its columns are quantised.

    Attributes:
        hessian: H with the diagonal of dead columns filled, undamped, float32, (columns, columns).
        order: columns in the order of quantisation, int64, (columns,).
        act_order: whether that is the order of falling diagonal; else as they lie.
        damping: what was added to the diagonal, as a part of its mean; None: H is not positive definite with any.
        added: the same as a number.
        root: R, upper triangular, of H + damping = R·Rᵀ in the order of quantisation, float32; None likewise.
    """

    hessian: torch.Tensor
    order: torch.Tensor
    act_order: bool
    damping: float | None
    added: float
    root: torch.Tensor | None

    @classmethod
    def of(cls, hessian: torch.Tensor, name: str, act_order: bool = True, damping: float = DAMPING) -> "Curvature":
        """Factor a Hessian; one that is not positive definite gets more damping in steps of ten.

        A column that no input reaches (its diagonal is zero) gets the mean of the others: it is rounded to nearest,
        not dropped as in GPTQ, since the calibration says nothing about it.

        Args:
            hessian: (columns, columns), any floating dtype, symmetric.
            name: the module that these inputs go to, for the error.
            act_order: whether columns are taken in the order of falling diagonal.
            damping: what to add to the diagonal first, as a part of its mean.

        Raises:
            TensorValueError: H holds NaN or infinity.
        """
        filled = hessian.float().clone()
        if not bool(torch.isfinite(filled).all()):
            raise TensorValueError(
                f"The Hessian of the inputs of {name!r} holds NaN or infinity. "
                "Check the calibration text, and that the model gives finite activations for it."
            )
        diagonal = filled.diagonal()
        order = torch.argsort(diagonal, descending=True, stable=True) if act_order else _as_they_lie(filled)
        live = diagonal[diagonal > 0]
        mean = float(live.double().mean()) if len(live) else 1.0
        diagonal[diagonal == 0] = mean
        ordered = filled[order][:, order]
        for step in _steps(damping):
            root = _root(ordered, step * mean)
            if root is not None:
                return cls(filled, order, act_order, step, step * mean, root)
        return cls(filled, order, act_order, None, 0.0, None)

    @cached_property
    def inverse_root(self) -> torch.Tensor:
        """R⁻¹, upper triangular: the factor of H⁻¹ = R⁻ᵀ·R⁻¹ that GPTQ propagates errors by (its Step 3)."""
        assert self.root is not None
        identity = torch.eye(len(self.root), dtype=self.root.dtype, device=self.root.device)
        inverse: torch.Tensor = torch.linalg.solve_triangular(self.root, identity, upper=True)
        return inverse.contiguous()  # its rows are what is read; the library gives it column by column


@dataclass(frozen=True)
class Inputs:
    """What calibration says of the inputs of one matrix.

    Attributes:
        hessian: 2·X·Xᵀ averaged over tokens, undamped, float32, (side, side).
        of_rows: whether inputs meet the matrix's rows, as where a layer stores its weight as (in, out); else its
            columns.
        site: the module that they go to, for errors.
    """

    hessian: torch.Tensor
    of_rows: bool = False
    site: str = ""

    @cached_property
    def curvature(self) -> Curvature:
        """The Hessian damped and factored, once for all matrices that share these inputs; columns by act-order."""
        return Curvature.of(self.hessian, self.site)


def output_error(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return ½·tr(Δ·H·Δᵀ), in float64, of Δ = weight − quantized, both (rows, columns)."""
    delta = (weight - quantized).double()
    return 0.5 * float(((delta @ hessian.double()) * delta).sum())


def _root(ordered: torch.Tensor, added: float) -> torch.Tensor | None:
    """Return R, upper triangular, of ordered + added·I = R·Rᵀ, or None where it does not exist."""
    damped = ordered.clone()
    damped.diagonal().add_(added)
    lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
    return lower.flip(0, 1) if int(info) == 0 and bool(torch.isfinite(lower).all()) else None


def _steps(damping: float) -> list[float]:
    steps = [damping]
    while steps[-1] * _STEP <= _MOST_DAMPING:
        steps.append(steps[-1] * _STEP if steps[-1] else DAMPING)
    return steps


def _as_they_lie(hessian: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(hessian), device=hessian.device)
