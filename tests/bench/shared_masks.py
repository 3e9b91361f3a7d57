"""What it saves that pairs of ImPart-Qt share the random words of their masks: factorisations, steps, and CPU time.

Unshared masks are those of version 4, which still decode. Everything else is as it is now in both.
"""

import statistics
from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from impart_core.base.numerics import one_thread_per_kernel
from impart_core.codec.parts import Codes
from impart_core.delta.factors import Factors
from impart_core.methods import METHODS, impart_qt
from impart_core.methods.base import Coding
from impart_core.methods.impart import factor_mask
from impart_core.quantization.grid import RowRange
from impart_core.quantization.groups import Groups
from impart_core.quantization.solve import quantize_matrix
from impart_core.quantization.support import _batches
from impart_core.selftest.samples import CPU, delta_of, inputs_of, projection_of

CR = 32
SHARING = {"unshared": 1, "shared": impart_qt._SHARING}
LARGE = (4096, 11008)  # the MLP of a 7B model
SMALL = (512, 1376)
ROWS, COLUMNS, KEPT = 128, 2048, 0.5
REPEATS = 3


def measure_shared_masks() -> dict[str, Any]:
    """Return figures with unshared and with shared masks.

    `mask_supports`, `mask_column_steps`: how many factors of the Hessian V of one 4096×11008 matrix at CR 32 takes, and
    steps over columns, from the keep codes that encoding finds for singular values that fall as k^−0.7.
    `mask_factor_cpu_seconds`: of a 128×2048 factor of which half is kept, quantised on its support.
    `mask_encode_cpu_seconds`: of the encoding of one 512×1376 matrix at CR 32. Medians of three, on one thread.
    """
    with one_thread_per_kernel():
        return {**_counts(), "mask_factor_cpu_seconds": _each(_factor), "mask_encode_cpu_seconds": _each(_encode_small)}


def _counts() -> dict[str, dict[str, int]]:
    codes = _encode(LARGE, _leading_factors(*LARGE), solver="nearest")
    keep = impart_qt._whole_steps(codes["keep_shared_v"].numpy())
    figures: dict[str, dict[str, int]] = {"mask_supports": {}, "mask_column_steps": {}}
    for name, sharing in SHARING.items():
        batches = list(_batches(factor_mask(0, "selftest", "v", LARGE[1], keep, sharing)))
        figures["mask_supports"][name] = sum(len(batch.support) for batch in batches)
        figures["mask_column_steps"][name] = sum(batch.support.shape[1] for batch in batches)
    return figures


def _each(work_of: Callable[[int], Callable[[], object]]) -> dict[str, float]:
    """Return the CPU seconds of a piece of work for either sharing, in turns, after a first round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in SHARING}
    works = {name: work_of(sharing) for name, sharing in SHARING.items()}
    for number in range(REPEATS + 1):
        for name, work in works.items():
            began = process_time()
            work()
            if number:
                seconds[name].append(process_time() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}


def _factor(sharing: int) -> Callable[[], object]:
    keep = np.full(ROWS, int(KEPT * (1 << 16)) - 1, dtype=np.uint16)
    mask = factor_mask(0, "selftest", "v", COLUMNS, keep, sharing)
    vectors = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    groups = Groups(mask, (RowRange(0, ROWS, 2),), 128)
    return partial(quantize_matrix, vectors, groups, inputs_of(COLUMNS, CPU).curvature, "selftest", solver="support")


def _encode_small(sharing: int) -> Callable[[], object]:
    delta = delta_of(*SMALL)
    u, sigma, vt = torch.linalg.svd(delta, full_matrices=False)
    factors = Factors(u.T.contiguous().half(), sigma, vt.contiguous().half())

    def work() -> None:
        with patch.object(impart_qt, "_SHARING", sharing):
            _encode(SMALL, factors, delta=delta)

    return work


def _leading_factors(m: int, n: int) -> Factors:
    """Return as many factors as an encoding asks for, vectors random, as keep codes do not depend on them."""
    rank = METHODS.get("impart-qt").needed_rank(m, n, Coding(method="impart-qt", cr=CR))
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(rank or 1, side, generator=generator).mul_(side**-0.5).half() for side in (m, n))
    return Factors(u, torch.arange(1, len(u) + 1) ** -0.7, v)


def _encode(shape: tuple[int, int], factors: Factors, delta: torch.Tensor | None = None, **options: str) -> Codes:
    coding = Coding(method="impart-qt", cr=CR, options=options)
    inputs = None if options.get("solver") == "nearest" else inputs_of(shape[1], CPU)
    given = torch.zeros(1, 1).expand(shape) if delta is None else delta  # its factors are what is encoded
    return METHODS.get("impart-qt").encode(projection_of(given, factors, inputs, CPU), coding)
