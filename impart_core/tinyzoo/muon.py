"""Updates of which all directions are as large: the optimizer Muon, which leaves deltas with a flat spectrum."""

from collections.abc import Iterable

import torch

_ROUNDS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's: singular values come to lie between 0.7 and 1.2


class Muon(torch.optim.Optimizer):
    """Gradient descent on matrices by momentum whose singular values are all set to about 1.

    Jordan, Muon: An optimizer for hidden layers in neural networks (2024). An update's entries have about the learning
    rate as their root mean square, so that one rate serves for these matrices and for what Adam trains beside them.
    """

    def __init__(self, matrices: Iterable[torch.nn.Parameter], momentum: float = 0.9) -> None:
        """Take the matrices to train.

        Args:
            matrices: float32 parameters of two dimensions.
            momentum: decay of the mean of gradients, which is Nesterov's.
        """
        super().__init__(list(matrices), {"lr": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move each matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
                mean.mul_(group["momentum"]).add_(matrix.grad)
                update = orthogonal(matrix.grad + group["momentum"] * mean)
                matrix.sub_(update, alpha=group["lr"] * max(matrix.shape) ** 0.5)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return about U·Vᵀ of a matrix U·diag(σ)·Vᵀ, (m, n), by five rounds of Newton and Schulz in float32."""
    a, b, c = _QUINTIC
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    found: torch.Tensor = wide / wide.norm().clamp_min(1e-12)
    for _ in range(_ROUNDS):
        gram = found @ found.T
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found.T if wide is not matrix else found
