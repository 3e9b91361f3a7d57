"""What the inputs of a linear module say of its weights: the damped Hessian, factored once for all that share it.

The output error of a weight change Δ, (rows, columns), is ½·tr(Δ·H·Δᵀ) with H = 2·X·Xᵀ averaged over tokens.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from impart_core.base.errors import TensorValueError

# Parts of the mean diagonal: the paper's, then more, up to 1; beyond that hardly anything of H is left.
_DAMPING = (0.01, 0.1, 1.0)


@dataclass(frozen=True)
class Curvature:
    """A Hessian with its damping, and the order in which its columns are quantised.

    Attributes:
        hessian: H with the diagonal of dead columns filled, undamped, float32, (columns, columns).
        order: columns in the order of quantisation, that of falling diagonal, int64, (columns,).
        added: the damping that was added to the diagonal.
        root: R, upper triangular, of H + added·I = R·Rᵀ in the order of quantisation, float32; None: H is not
            positive definite with any damping.
    """

    hessian: torch.Tensor
    order: torch.Tensor
    added: float
    root: torch.Tensor | None

    @classmethod
    def of(cls, hessian: torch.Tensor, name: str) -> "Curvature":
        """Factor a Hessian; one that is not positive definite gets more damping in steps of ten.

        A column that no input reaches (its diagonal is zero) gets the mean of the others: it is rounded to nearest,
        not dropped as in GPTQ, since the calibration says nothing about it.

        Args:
            hessian: (columns, columns), any floating dtype, symmetric.
            name: the module that these inputs go to, for the error.

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
        order = torch.argsort(diagonal, descending=True, stable=True)
        live = diagonal[diagonal > 0]
        mean = float(live.double().mean()) if len(live) else 1.0
        diagonal[diagonal == 0] = mean
        ordered = filled[order][:, order]
        for damping in _DAMPING:
            root = _root(ordered, damping * mean)
            if root is not None:
                return cls(filled, order, damping * mean, root)
        return cls(filled, order, 0.0, None)

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
        """The Hessian damped and factored, once for all matrices that share these inputs."""
        return Curvature.of(self.hessian, self.site)


def _root(ordered: torch.Tensor, added: float) -> torch.Tensor | None:
    """Return R, upper triangular, of ordered + added·I = R·Rᵀ, or None where it does not exist."""
    damped = ordered.clone()
    damped.diagonal().add_(added)
    lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
    return lower.flip(0, 1) if int(info) == 0 and bool(torch.isfinite(lower).all()) else None
