"""BD-rate (Bjøntegaard, ITU-T VCEG-M33, 2001): how many more bytes one curve takes than another at equal quality."""

import math
from collections.abc import Sequence

import numpy as np

Curve = Sequence[tuple[float, float]]  # bytes and quality of each point


def bd_rate(curve: Curve, reference: Curve) -> float | None:
    """Return the mean change of bytes at equal quality, −0.5 where a curve takes half the bytes of the reference.

    The logarithm of bytes is interpolated as a function of quality by monotone cubic pieces (PCHIP), and the
    difference of both curves is averaged over the interval of quality that both have. Points that another point of
    the same curve beats, with no more bytes and no less quality, are left out: bytes have to rise with quality.

    Args:
        curve: bytes and quality of its points.
        reference: of those that it is held against.

    Returns:
        exp(mean difference) − 1; None where a curve has fewer than two points or there is no common interval.
    """
    from scipy.interpolate import PchipInterpolator

    integrals = []
    fronts = [_front(points) for points in (curve, reference)]
    if any(len(front) < 2 for front in fronts):
        return None
    low = max(front[0][1] for front in fronts)
    high = min(front[-1][1] for front in fronts)
    if low >= high:
        return None
    for front in fronts:
        size, quality = (np.array(column) for column in zip(*front, strict=True))
        integrals.append(float(PchipInterpolator(quality, np.log(size)).integrate(low, high)))
    return math.exp((integrals[0] - integrals[1]) / (high - low)) - 1


def quality_at(curve: Curve, size: float) -> float | None:
    """Return a curve's quality at a size, interpolated as above over the logarithm of bytes; None outside of it."""
    from scipy.interpolate import PchipInterpolator

    front = _front(curve)
    if len(front) < 2 or not front[0][0] <= size <= front[-1][0]:
        return None
    sizes, quality = (np.array(column) for column in zip(*front, strict=True))
    return float(PchipInterpolator(np.log(sizes), quality)(math.log(size)))


def _front(points: Curve) -> list[tuple[float, float]]:
    """Return the points that no other beats, bytes and quality ascending."""
    front: list[tuple[float, float]] = []
    for size, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or quality > front[-1][1]:
            front.append((size, quality))
    return front
