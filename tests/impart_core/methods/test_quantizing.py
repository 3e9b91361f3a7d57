"""What the methods that quantise have in common: savings are spent, and with calibration outputs differ less."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from impart_core.base.errors import ConfigError
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.index import Checkpoint
from impart_core.codec.parts import nbytes
from impart_core.delta.budget import budget_bytes
from impart_core.engine.plan import check_request
from impart_core.methods import QUANTIZING
from impart_core.methods.base import Projection
from tests.impart_core.methods.codes import calibrated, keep_of, outputs_differ, sum_of_pairs, vector_masks
from tests.impart_core.methods.requests import decode, encode, request_of
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

Opened = tuple[Checkpoint, Checkpoint]
methods = pytest.mark.parametrize("method", QUANTIZING)


@methods
def test_what_the_entropy_coder_saves_is_spent_unless_told_not_to(method: str) -> None:
    projection = calibrated(decaying_delta(192, 128))
    requests_ = {fill: config_of(16, method=method, options={"fill": fill}) for fill in (True, False)}
    packed = config_of(16, method=method, options={"lossless": False})
    codes = {fill: encode(projection, request) for fill, request in requests_.items()}
    assert nbytes(codes[False]) < 0.96 * nbytes(encode(projection, packed))
    assert nbytes(codes[False]) < nbytes(codes[True]) <= budget_bytes(192, 128, 16)
    errors = {fill: outputs_differ(projection, decode(codes[fill], projection, requests_[fill])) for fill in codes}
    assert errors[True] < errors[False] or method == "dare-qt"  # whose mask is another one


@methods
@pytest.mark.parametrize("of_rows", [False, True])
@pytest.mark.parametrize("lossless", [True, False])
def test_outputs_differ_less_than_with_rounding_to_the_nearest(method: str, of_rows: bool, lossless: bool) -> None:
    """At the same ratio: each is compared with what its entries would be decoded to before quantisation."""
    shape = (96, 128)
    projection = calibrated(decaying_delta(*shape), of_rows=of_rows)
    options = {"fill": False, "lossless": lossless}
    errors = {}
    for solver in ("support", "masked", "nearest"):
        request = request_of(method, 8, options={**options, "solver": solver})
        found = decode(encode(projection, request), projection, request)
        unquantised = replace(projection, delta=partial(decode_unquantised, projection, request))
        errors[solver] = outputs_differ(unquantised, found)
    assert errors["support"] < 0.9 * errors["nearest"]
    assert errors["support"] <= errors["masked"]


def decode_unquantised(projection: Projection, request: CompressConfig) -> torch.Tensor:
    """Return what the same kept entries would be decoded to if they were stored at full precision."""
    codes, shape, name = encode(projection, request), projection.shape, projection.name
    if request.method == "dare-qt":
        probability = (int(codes["keep"][0]) + 1) / 65536
        ones = decode(encode(Projection.of(torch.ones(shape), name), request), projection, request)
        return torch.where(ones != 0, projection.delta() / probability, 0.0)
    factors, keep = projection.factors(), keep_of(codes)
    sides = zip((factors.u, factors.v), vector_masks(codes, shape, request.seed, name), strict=True)
    return sum_of_pairs(codes, [torch.where(mask, side[: len(keep)], 0.0) for side, mask in sides]).float()


@methods
@pytest.mark.parametrize("solver", ["support", "nearest"])
def test_inputs_of_rows_are_met_as_well_as_those_of_columns(method: str, solver: str) -> None:
    """A layer that stores its weight as (in, out) has the transposed delta; its masks are others, not its errors."""
    request, delta = request_of(method, 8, options={"solver": solver}), decaying_delta(96, 160)
    columns, rows = calibrated(delta), calibrated(delta.T.contiguous(), of_rows=True)
    found = [outputs_differ(each, decode(encode(each, request), each, request)) for each in (columns, rows)]
    assert found[1] == pytest.approx(found[0], rel=0.15)


@methods
def test_nothing_need_be_known_of_the_inputs(method: str) -> None:
    projection, request = Projection.of(decaying_delta(96, 128), "w"), request_of(method, 8)
    codes = encode(projection, request)
    assert nbytes(codes) <= budget_bytes(96, 128, 8)
    delta = projection.delta()
    # DARE multiplies what it keeps by two; the others keep what counts.
    assert torch.dist(decode(codes, projection, request), delta) < {"dare-qt": 1.5}.get(method, 0.6) * torch.norm(delta)


@pytest.mark.parametrize("method", ["delta-come", "impart-qt"])
def test_a_ladder_of_more_vectors_than_the_largest_projection_has_is_refused(method: str, opened: Opened) -> None:
    for ladder in ("8x2,3x32,2", "2x33,16"):
        with pytest.raises(ConfigError, match=rf"^Ladder {ladder} asks for 3\d vectors before the rest, but the larg"):
            check_request(*opened, config_of(4, method=method, options={"ladder": ladder}))
    with pytest.raises(ConfigError, match=r"largest matrix has rank 32\. Lower the counts to 32 in all, as in "):
        check_request(*opened, config_of(4, method=method))
    check_request(*opened, config_of(4, method=method, options={"ladder": "8x2,3x30,2"}))
