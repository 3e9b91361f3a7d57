"""The merge methods in numpy and float64, as their papers write them: all models at once, everything sorted."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def kept(delta: Array, above: int, count: int) -> Array:
    """Return a delta of which only `count` entries are not nought, those that `above` others are larger than."""
    order = np.argsort(-np.abs(delta).ravel(), kind="stable")[above : above + count]
    result = np.zeros(delta.size)
    result[order] = delta.ravel()[order]
    return result.reshape(delta.shape)


def rescaled(sparse: Array, delta: Array) -> Array:
    size = np.abs(sparse).sum()
    return sparse * (np.abs(delta).sum() / size) if size > 0 else sparse


def column(weights: Sequence[float], like: Array) -> Array:
    return np.reshape(np.asarray(weights, dtype=np.float64), (-1, *[1] * (like.ndim - 1)))


def weighted(x: Array, weight: Sequence[float], normalize: bool, lambda_: float) -> Array:
    total = sum(weight)
    return lambda_ * (column(weight, x) * x).sum(axis=0) / (total if normalize and abs(total) > 1e-8 else 1)


def elected(x: Array, weight: Sequence[float], normalize: bool, lambda_: float, votes: Any = None) -> Array:
    w = column(weight, x)
    v = w if votes is None else column(votes, x)
    sign = np.where((v * x).sum(axis=0) >= 0, 1, -1)
    agree = np.sign(v * x) == sign
    divisor = (w * agree).sum(axis=0) if normalize else np.ones(x.shape[1:])
    return lambda_ * (w * x * agree).sum(axis=0) / np.where(divisor == 0, 1, divisor)


def ties(x: Array, weight: Any, density: float, normalize: bool, rescale: bool, lambda_: float) -> Array:
    trimmed = [kept(one, 0, max(1, int(density * one.size))) for one in x]
    trimmed = [rescaled(t, one) if rescale else t for t, one in zip(trimmed, x, strict=True)]
    return elected(np.stack(trimmed), weight, normalize, lambda_)


def breadcrumbs(
    x: Array, weight: Any, density: float, gamma: float, normalize: bool, rescale: bool, lambda_: float, combine: Any
) -> Array:
    size = x[0].size
    count = int(density * size)
    above = min(int(gamma * size), size - count)
    masked = [kept(one, above, count) for one in x]
    masked = [rescaled(t, one) if rescale else t for t, one in zip(masked, x, strict=True)]
    result: Array = combine(np.stack(masked), weight, normalize, lambda_)
    return result


def slerp(a: Array, b: Array, t: float, line: float = 0.9995) -> Array:
    cosine = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    if abs(cosine) > line:
        return (1 - t) * a + t * b
    theta = np.arccos(cosine)
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


def nuslerp(a: Array, b: Array, weight: Sequence[float], axis: int | None) -> Array:
    t = weight[1] / sum(weight)
    if axis is None:
        return slerp(a, b, t, 1 - 1e-7)
    rows = zip(np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1), strict=True)
    return np.moveaxis(np.stack([slerp(one, other, t, 1 - 1e-7) for one, other in rows]), -1, axis)


def multislerp(x: Array, weight: Sequence[float]) -> Array:
    """Return it by way of the tangent space, as it is published."""
    w = column(np.asarray(weight) / sum(weight), x)
    norms = np.sqrt((x * x).reshape(len(x), -1).sum(axis=1))
    units = x / column(norms, x)
    mean = (w * units).sum(axis=0)
    mean /= np.linalg.norm(mean)
    dots = (units * mean).reshape(len(x), -1).sum(axis=1)
    tangent = (w * (units - column(dots, x) * mean)).sum(axis=0)
    size = np.linalg.norm(tangent) + 1e-8
    return (mean * np.cos(size) + tangent * np.sin(size) / size) * float((w.ravel() * norms).sum())


def karcher(x: Array, steps: int = 200) -> Array:
    """Return it by small steps down the gradient, on the sphere itself."""
    norms = np.sqrt((x * x).reshape(len(x), -1).sum(axis=1))
    units = (x / column(norms, x)).reshape(len(x), -1)
    u = units.sum(axis=0)
    u /= np.linalg.norm(u)
    for _ in range(steps):
        dots = np.clip(units @ u, -1, 1)
        away = units - dots[:, None] * u
        lengths = np.linalg.norm(away, axis=1)
        u = u + 0.3 * (away * (np.arccos(dots) / np.maximum(lengths, 1e-12))[:, None]).mean(axis=0)
        u /= np.linalg.norm(u)
    return norms.mean() * u.reshape(x.shape[1:])


def sce(x: Array, select_topk: float) -> Array:
    variance = x.var(axis=0)
    chosen = kept(variance, 0, int(select_topk * np.count_nonzero(variance))) != 0 if select_topk < 1 else True
    x = x * chosen
    energy = (x * x).reshape(len(x), -1).sum(axis=1)
    return elected(x, energy / energy.sum(), True, 1.0, votes=np.ones(len(x)))


def model_stock(x: Array) -> Array:
    def cosine(a: Array, b: Array) -> float:
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))

    mean = np.mean([cosine(x[i], x[j]) for i, j in combinations(range(len(x)), 2)])
    return len(x) * mean / (1 + (len(x) - 1) * mean) * x.mean(axis=0)


def ram(x: Array, epsilon: float, r: float | None = None, alpha: float = 0.2) -> Array:
    changed = np.abs(x) > epsilon
    count = changed.sum(axis=0)
    result = np.zeros(x.shape[1:])
    for own, where in zip(x, changed, strict=True):
        factor = 1.0
        if r is not None:
            alone, shared = (where & (count == 1)).sum(), (where & (count > 1)).sum()
            factor = 1 + r * min(alpha, shared / max(alone, epsilon))
        result += np.where(where, np.where(count == 1, factor, 1 / np.maximum(count, 1)) * own, 0)
    return result


def arcee_fusion(base: Array, other: Array) -> Array:
    def softmax(w: Array) -> Array:
        e = np.exp(w - w.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True) + 1e-8

    p, q = softmax(other), softmax(base)
    importance = np.abs(other - base) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    ordered = np.sort(importance.ravel())
    low, median, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    return np.where(importance >= median + 1.5 * (high - low), other - base, 0)


def polar(matrix: Array) -> Array:
    """Return matrix·(matrixᵀ·matrix)^(−½)."""
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    return matrix @ (vectors / np.sqrt(values)) @ vectors.T


def tsv_merge(x: Array, weight: Sequence[float]) -> Array:
    count = min(x.shape[1:]) // len(x)
    factors = [np.linalg.svd(w * one) for w, one in zip(weight, x, strict=True)]
    u = polar(np.concatenate([u[:, :count] for u, _, _ in factors], axis=1))
    v = polar(np.concatenate([vt[:count].T for _, _, vt in factors], axis=1))
    return u @ np.diag(np.concatenate([s[:count] for _, s, _ in factors])) @ v.T


def iso_c(x: Array, weight: Sequence[float]) -> Array:
    total = (column(weight, x) * x).sum(axis=0)
    u, sigma, vt = np.linalg.svd(total, full_matrices=False)
    return sigma.mean() * u @ vt
