"""Checking codes, as `verify` does: it finds what decoding finds, and takes no memory for what a header claims."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from impart_core.base.errors import CorruptArtifactError
from impart_core.checkpoint.layout import Role
from impart_core.codec.format import ROWS, TensorHeader
from impart_core.codec.parts import Codes
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.methods.decode import check_delta, decode_delta
from impart_core.store.provenance import peak_rss_bytes
from tests.impart_core.methods.requests import VARIANTS, encode, request_of
from tests.impart_core.methods.test_damage import damaged
from tests.support import decaying_delta

VECTORS = Path(__file__).parents[2] / "vectors"
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


def with_other_bytes(codes: Codes, rng: random.Random) -> Codes:
    """Return codes of which one to three bytes, or single bits, of one part are others."""
    part = rng.choice(sorted(part for part in codes if codes[part].numel()))
    data = codes[part].contiguous().view(torch.uint8).numpy().copy()
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(len(data))] ^= rng.choice([1 << rng.randrange(8), rng.randint(1, 255)])
    return {**codes, part: torch.from_numpy(data).view(codes[part].dtype)}


@pytest.mark.parametrize(("method", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize("cr", [2, 12])
def test_checking_finds_what_decoding_finds(method: str, options: dict[str, bool], cr: float) -> None:
    codes = encode(Projection.of(decaying_delta(40, 64), "w"), request_of(method, cr, options=options))
    rng = random.Random(f"{method} {cr}")
    others = [with_other_bytes(codes, rng) for _ in range(150)]
    refused = 0
    for given in (codes, *(other for _, other in damaged(codes)), *others):
        header = header_of(method, (40, 64), given)
        said = refusal(check_delta, header, given)
        assert said == refusal(decode_delta, header, given)
        refused += said is not None
    assert refused > 10
    for shape in ((64, 40), (39, 64), (40, 63), (40, 1000)):
        header = header_of(method, shape, codes)
        assert refusal(check_delta, header, codes) == refusal(decode_delta, header, codes)
    assert refusal(check_delta, header_of(method, (40, 64), codes), codes) is None


def test_checking_takes_codes_of_earlier_versions() -> None:
    old = load_file(VECTORS / "impart_qt_4.safetensors")
    del old["decoded"]
    header = header_of("impart-qt", (48, 80), old).model_copy(update={"seed": 7})
    check_delta("layer.w", header, old)
    with pytest.raises(CorruptArtifactError, match=r"'layer\.w'"):  # more entries than the masks of that seed keep
        check_delta("layer.w", header.model_copy(update={"seed": 8}), old)


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
