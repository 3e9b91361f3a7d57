"""Karcher mean: the point of the sphere that is nearest to all directions (Buss & Fillmore 2001, Algorithm A1)."""

import math
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from impart_core.merging.blocks import entries_of, gram
from impart_core.merging.method import Tensors, merge_method
from impart_core.merging.sums import plain_sum

FloatArray = npt.NDArray[np.float64]


@merge_method("karcher", "Karcher mean", "doi 10.1145/502122.502124", base="donor")
def karcher(
    tensors: Tensors, *, max_iter: Annotated[int, Field(ge=0)] = 10, tol: Annotated[float, Field(gt=0)] = 1e-5
) -> torch.Tensor:
    """Return s·u: u is the unit vector with the least Σ angle(u, W_i)², s the mean of ‖W_i‖.

    Every step stays in the span of the models, so that all is computed on the coefficients c of u = Σ c_i·W_i/‖W_i‖,
    from the models' inner products: tensors are read twice, whatever the number of iterations.

    Args:
        tensors: W_i, float32, all of one shape.
        max_iter: the most iterations.
        tol: steps and angles, in radians, and norms that count as nought.
    """
    products = gram(tensors).numpy()
    norms = np.sqrt(products.diagonal())
    valid = norms > tol
    coefficients = np.zeros(len(norms))
    if valid.any():
        cosines = products[np.ix_(valid, valid)] / np.outer(norms[valid], norms[valid])
        coefficients[valid] = norms.mean() * _mean_direction(cosines, max_iter, tol) / norms[valid]
    entries = [entries_of(tensor) for tensor in tensors]
    return plain_sum(tensors[0], entries, coefficients.tolist(), normalize=False, lambda_=1.0)


def _mean_direction(cosines: FloatArray, max_iter: int, tol: float) -> FloatArray:
    """Return c, (models,): the coefficients of the mean of unit vectors with these inner products."""

    def length(coefficients: FloatArray) -> float:
        return math.sqrt(max(0.0, float(coefficients @ cosines @ coefficients)))

    mean = np.full(len(cosines), 1 / len(cosines))
    mean = np.eye(len(cosines))[0] if length(mean) < tol else mean / length(mean)
    for _ in range(max_iter):
        dots = np.clip(cosines @ mean, -1.0, 1.0)
        angles = np.arccos(dots)
        # Of log_u(x) = θ/sin θ·(x − cos θ·u); it has no direction where x is u, or its opposite.
        apart = (angles >= tol) & (angles <= np.pi - tol)
        steps = np.where(apart, angles / np.where(apart, np.sin(angles), 1.0), 0.0) / len(cosines)
        tangent = steps - (steps @ dots) * mean
        size = length(tangent)
        if size < tol:
            break
        mean = np.cos(size) * mean + np.sin(size) / size * tangent
        mean = mean / length(mean)
    return mean
