"""Delta-CoMe: as many whole vectors as fit, the first at more bits, and what the codes are."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.parts import Codes, nbytes
from impart_core.delta.budget import budget_bytes
from impart_core.methods.base import Projection
from impart_core.methods.delta_come import DeltaCome
from impart_core.quantization.ladder import Ladder
from impart_core.quantization.streams import unpack_matrices
from tests.impart_core.methods.codes import calibrated, outputs_differ
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = DeltaCome()
LADDERS = ["8x2,3x32,2", "8x2,4", "16x1,8x1,3", "2", "16"]
sides = st.integers(2, 40)


def encoded(projection: Projection, cr: float = 16, **settings_: Any) -> Codes:
    return METHOD.encode(projection, config_of(cr, method="delta-come", **settings_))


def whole(count: int, shape: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.ones(count, side, dtype=torch.bool) for side in shape]


def test_the_parts_are_sigma_and_whole_vectors_at_their_bits() -> None:
    projection = calibrated(decaying_delta(128, 160), "layer.w")
    codes = encoded(projection, 16)
    factors, pairs = projection.factors(), len(codes["sigma"])
    assert {part: code.dtype for part, code in codes.items()} == {
        "sigma": torch.bfloat16,
        "layout": torch.uint16,
        "scales": torch.float16,
        "zeros": torch.uint8,
        "forms": torch.uint8,
        "lengths": torch.uint32,
        "packed": torch.uint32,
        "codes": torch.uint8,
    }
    assert torch.equal(codes["sigma"], factors.sigma[:pairs].bfloat16())
    assert codes["layout"].tolist() == [128, 1, 8, 2, 3, pairs - 2]
    u, v = unpack_matrices(codes, "layer.w", whole(pairs, (128, 160)))
    assert torch.dist(v[0], factors.v[0].float()) < 0.02  # eight bits of a group of 128
    expected = (u.double() * codes["sigma"][:, None].double()).T @ v.double()
    found = METHOD.decode(codes, "layer.w", (128, 160), 0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * float(found.abs().max()))


@given(m=sides, n=sides, cr=st.floats(1, 60), ladder=st.sampled_from(LADDERS), size=st.sampled_from([1, 16, 128]))
@settings(max_examples=100, deadline=None)
def test_one_vector_more_would_not_fit(m: int, n: int, cr: float, ladder: str, size: int) -> None:
    options = {"ladder": ladder, "group_size": size, "lossless": False, "solver": "nearest"}
    config = config_of(cr, method="delta-come", options=options)
    if cr > METHOD.highest_cr(m, n, config):
        return
    codes = METHOD.encode(Projection.of(decaying_delta(m, n), "w"), config)
    count, budget = len(codes["sigma"]), budget_bytes(m, n, cr)
    assert nbytes(codes) == bytes_of(m, n, count, ladder, size) <= budget
    assert count == min(m, n) or bytes_of(m, n, count + 1, ladder, size) > budget
    assert METHOD.needed_rank(m, n, config) == count


def bytes_of(m: int, n: int, count: int, ladder: str, size: int) -> int:
    """Return the bytes of so many whole vectors, counted out."""
    total = 2 * count + 2 * 2
    for span in Ladder.parse(ladder).spans(count):
        total += 2 * 2
        for side in (m, n):
            entries = (span.stop - span.start) * side
            groups = 0 if span.bits == 16 else -(-entries // size)
            total += -(-entries * span.bits // 8) + 2 * groups + -(-groups * span.bits // 8)
    return total


@pytest.mark.parametrize(
    ("shape", "cr", "ladder", "count"),
    [
        # Room for 128/(2·16) = 4 vectors of 16 bits, 64 bits in all: 2·8 + 12·4, three bits counted as four.
        ((128, 128), 16, "8x2,3x32,2", 14),
        ((128, 128), 16, "16", 4),
        ((128, 128), 16, "2", 32),
        # 128·2/(2·3)/8 = 85.33 bits: 16 and 17 of four.
        ((128, 64), 8, "8x2,3x32,2", 19),
        ((128, 128), 4, "8x2,3x32,2", 90),  # 256 bits: 16, 32·4 and 56·2
        ((128, 128), 1000, "8x2,3x32,2", 1),
    ],
)
def test_under_the_papers_count_there_are_as_many_vectors_as_their_bits_allow(
    shape: tuple[int, int], cr: float, ladder: str, count: int
) -> None:
    options = {"ladder": ladder, "solver": "nearest"}
    config = config_of(cr, method="delta-come", accounting="paper", options=options)
    bits = [{3: 4}.get(s.bits, s.bits) for s in Ladder.parse(ladder).spans(count + 1) for _ in range(s.start, s.stop)]
    room = 16 * shape[0] * shape[1] / (cr * sum(shape))
    assert sum(bits[:count]) <= room or count == 1
    assert sum(bits) > room
    assert METHOD.needed_rank(*shape, config) == count
    codes = METHOD.encode(Projection.of(decaying_delta(*shape), "w"), config)
    assert len(codes["sigma"]) == count
    assert nbytes(codes) <= METHOD.expected_bytes(*shape, config)


def test_at_16_bits_it_is_the_truncated_decomposition() -> None:
    delta = decaying_delta(96, 64)
    options = {"ladder": "16", "lossless": False, "solver": "nearest"}
    codes = encoded(Projection.of(delta, "w"), 4, options=options)
    u, sigma, vh = np.linalg.svd(delta.double().numpy(), full_matrices=False)
    pairs = len(codes["sigma"])
    expected = (u[:, :pairs] * sigma[:pairs]) @ vh[:pairs]
    # u and v are stored in float16, 2⁻¹¹ relative in each, σ in bfloat16, 2⁻⁹.
    error = np.linalg.norm(METHOD.decode(codes, "w", (96, 64), 0).numpy() - expected)
    assert error <= 2**-8 * np.linalg.norm(sigma[:pairs])


def test_fewer_bits_for_more_vectors_differ_less_than_few_at_16_bits() -> None:
    """The idea of the method, at a ratio where it counts."""
    projection = calibrated(decaying_delta(192, 192, power=0.5))
    found = [
        outputs_differ(projection, METHOD.decode(encoded(projection, 16, options={"ladder": text}), "w", (192, 192), 0))
        for text in ("8x2,3x32,2", "16")
    ]
    assert found[0] < found[1]


def test_codes_of_more_vectors_than_the_rank_are_refused_by_name() -> None:
    codes = encoded(Projection.of(decaying_delta(64, 96), "w"), options={"solver": "nearest"})
    with pytest.raises(CorruptArtifactError, match="codes of 'w' have 65 vector pairs, more than its rank"):
        METHOD.decode({**codes, "sigma": torch.ones(65).bfloat16()}, "w", (64, 96), 0)


def test_no_vector_at_all_is_a_delta_of_zeros() -> None:
    codes = {
        "sigma": torch.empty(0).bfloat16(),
        "layout": torch.tensor([128, 0], dtype=torch.uint16),
        "scales": torch.empty(0).half(),
        "zeros": torch.empty(0, dtype=torch.uint8),
        "codes": torch.empty(0, dtype=torch.uint8),
    }
    assert torch.equal(METHOD.decode(codes, "w", (4, 5), 0), torch.zeros(4, 5))
