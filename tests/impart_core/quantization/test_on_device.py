"""Solvers on a device give the CPU's codes, whatever the bits, the masks and the Hessian."""

import pytest
import torch

from impart_core.quantization.curvature import Curvature
from impart_core.quantization.grid import RowRange
from impart_core.quantization.groups import Groups
from impart_core.quantization.solve import Solver, quantize_matrix
from impart_core.quantization.streams import QuantizedMatrix, pack_matrices, unpack_matrices
from tests.impart_core.methods.codes import same
from tests.impart_core.quantization.samples import HESSIANS, factor_of, hessian_of
from tests.pretend_device import PRETEND

MIXED = (RowRange(0, 2, 8), RowRange(2, 3, 16), RowRange(3, 24, 2))


def quantized(device: torch.device | str, solver: Solver, kind: str, keep: float, along_rows: bool) -> QuantizedMatrix:
    weight, mask = factor_of(24, 40, keep)
    hessian = hessian_of(kind, 24 if along_rows else 40)
    groups = Groups(mask.to(device), MIXED, 32)
    curvature = Curvature.of(hessian.to(device), "w")
    return quantize_matrix(weight.to(device), groups, curvature, "w", solver=solver, along_rows=along_rows)


@pytest.mark.parametrize("solver", ["support", "masked", "nearest"])
@pytest.mark.parametrize("kind", HESSIANS)
@pytest.mark.parametrize("keep", [0.3, 1.0])
@pytest.mark.parametrize("along_rows", [False, True])
def test_codes_are_the_same_on_a_device(solver: Solver, kind: str, keep: float, along_rows: bool) -> None:
    here, there = (quantized(device, solver, kind, keep, along_rows) for device in ("cpu", PRETEND))
    assert there.codes.device == PRETEND
    codes = pack_matrices([there], lossless=True)
    assert same(codes, pack_matrices([here], lossless=True))
    (values,) = unpack_matrices(codes, "w", [here.groups.mask])
    assert torch.equal(there.values().cpu(), values)
