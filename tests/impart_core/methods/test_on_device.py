"""Every method on a device gives the CPU's codes: what it is told may lie on either."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from impart_core.delta.factors import Factors
from impart_core.delta.svd import decompose
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.quantization.curvature import Inputs
from tests.impart_core.methods.codes import same
from tests.impart_core.methods.requests import encode, request_of, where_known
from tests.impart_core.quantization.samples import hessian_of
from tests.pretend_device import PRETEND
from tests.support import decaying_delta

CPU = torch.device("cpu")
M, N = 48, 64
DELTA = decaying_delta(M, N)
CASES = [
    (method, options)
    for method in METHODS
    for options in (
        [{"solver": solver} for solver in ("support", "masked", "nearest")]
        if where_known(method, solver="")
        else [{"per_row": each} for each in (False, True)]
        if where_known(method, per_row=False)
        else [{}]
    )
]


def projection(device: torch.device, factors_on: torch.device, inputs: str | None) -> Projection:
    """Return one whose delta and Hessian lie on a device, and whose factors, in float16, may lie on another."""
    delta = DELTA.to(device)

    def factors() -> Factors:
        found = decompose(DELTA, "w")
        u, v = (side.half().to(factors_on) for side in (found.u, found.v))
        return replace(found, u=u, sigma=found.sigma.to(factors_on), v=v)

    told = None
    if inputs:
        told = Inputs(hessian_of("correlated", M if inputs == "rows" else N).to(device), inputs == "rows", "w")
    return Projection("w", (M, N), lambda: delta, factors, told)


@pytest.mark.parametrize(("method", "options"), CASES)
@pytest.mark.parametrize("inputs", [None, "columns", "rows"])
@pytest.mark.parametrize("accounting", ["bytes", "paper"])
def test_codes_are_the_same_on_a_device(
    method: str, options: dict[str, Any], inputs: str | None, accounting: str
) -> None:
    request = request_of(method, 20, options=options, accounting=accounting)
    expected = encode(projection(CPU, CPU, inputs), request)
    for factors_on in (CPU, PRETEND):  # a decomposition's are stored from the CPU
        found = encode(projection(PRETEND, factors_on, inputs), request)
        assert all(part.device == CPU for part in found.values())
        assert same(found, expected)
