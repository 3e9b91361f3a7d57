"""Checking codes, as `verify` does: it finds what decoding finds, and takes no memory for what a header claims."""

import pytest
import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.checkpoint.layout import Role
from impart_core.codec.format import ROWS, TensorHeader
from impart_core.codec.parts import Codes
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.methods.decode import check_delta, decode_delta
from impart_core.store.provenance import peak_rss_bytes
from tests.impart_core.methods.requests import request_of
from tests.support import decaying_delta

SIDE = 1 << 15  # 4.3 GB as float32
TOUCHED_BYTES = 512 << 20


def header_of(method: str, shape: tuple[int, ...], codes: Codes) -> TensorHeader:
    return TensorHeader(method=method, role=Role.PROJECTION, shape=shape, dtype="F32", parts=tuple(codes))


def coded(method: str) -> Codes:
    return METHODS.get(method).encode(Projection.of(decaying_delta(24, 16), "w"), request_of(method, 4).projections)


def refusal(check: object, header: TensorHeader, codes: Codes) -> str | None:
    try:
        check("w", header, codes)  # type: ignore[operator]
    except CorruptArtifactError as error:
        return str(error)
    return None


@pytest.mark.parametrize("method", list(METHODS))
def test_checking_finds_what_decoding_finds(method: str) -> None:
    codes = coded(method)
    damaged = [{name: code for name, code in codes.items() if name != lost} for lost in codes]
    damaged += [{**codes, cut: codes[cut][:-1]} for cut in codes if codes[cut].numel() > 1]
    for shape in ((24, 16), (16, 24), (23, 16), (24, 400)):
        for given in (codes, *damaged):
            header = header_of(method, shape, given)
            assert refusal(check_delta, header, given) == refusal(decode_delta, header, given)
    assert refusal(check_delta, header_of(method, (24, 16), codes), codes) is None


def claims() -> dict[str, tuple[TensorHeader, Codes]]:
    """Return small codes of every method, and of none, whose headers claim a matrix of gigabytes."""
    large = (SIDE, SIDE)
    found = {method: (header_of(method, large, codes), codes) for method in METHODS if (codes := coded(method))}
    rows = {"rows": torch.empty(0, dtype=torch.int32), "values": torch.empty(0, SIDE, dtype=torch.float16)}
    one = {"sigma": torch.ones(1), **{side: torch.ones(1, SIDE, dtype=torch.float16) for side in "uv"}}
    return {
        **found,
        "no rows": (header_of(ROWS, large, rows), rows),
        "rank one": (header_of("lowrank", large, one), one),
    }


@pytest.mark.parametrize("claim", claims())
def test_a_header_that_claims_gigabytes_takes_none(claim: str) -> None:
    header, codes = claims()[claim]
    before = peak_rss_bytes()
    said = refusal(check_delta, header, codes)
    assert peak_rss_bytes() - before < TOUCHED_BYTES
    assert (said is None) == (claim in ("no rows", "rank one"))
