"""Every method refuses codes that are damaged, or of another tensor, by the tensor's name."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.parts import Codes
from impart_core.methods import METHODS, QUANTIZING
from impart_core.methods.base import Projection
from tests.impart_core.methods.requests import VARIANTS, WITHOUT_MASKS, decode, encode, request_of
from tests.support import decaying_delta


def damaged(codes: Codes) -> Iterator[tuple[str, Codes]]:
    """Yield codes of which one part is missing or is another tensor than it was."""
    for part, code in codes.items():
        if part != "exponent":  # without it the values are as they are stored
            yield f"no {part}", {name: other for name, other in codes.items() if name != part}
        changes = {
            "cut": code[:-1],
            "longer": torch.cat([code, code[:1]]),
            "twice": torch.cat([code, code]),
            "empty": code[:0],
            "of another dtype": code.double(),
            "of another shape": code[None],
        }
        if part.startswith("keep"):
            changes |= {
                "of nothing": torch.zeros_like(code),
                "of all": torch.full_like(code, torch.iinfo(code.dtype).max),
            }
        for change, other in changes.items():
            if other.dtype != code.dtype or not torch.equal(other, code):  # of an empty part some are what it was
                yield f"{part} {change}", {**codes, part: other}
    if keep := [part for part in codes if part.startswith("keep") and "sigma" in codes]:
        yield "a pair fewer", {**codes, **{part: codes[part][:-1] for part in ("sigma", *keep)}}


@pytest.mark.parametrize(("method", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize("cr", [4, 20])
def test_codes_that_are_damaged_are_refused_by_name(method: str, options: dict[str, bool], cr: float) -> None:
    request = request_of(method, cr, options=options)
    projection = Projection.of(decaying_delta(40, 64), "layer.w")
    codes = encode(projection, request)
    for change, other in damaged(codes):
        with pytest.raises(CorruptArtifactError, match=r"'layer\.w'"):
            raise AssertionError(f"{change}: {decode(other, projection, request).shape}")
    with pytest.raises(CorruptArtifactError, match=r"'layer\.w'"):
        decode(codes, replace(projection, shape=(40, 63)), request)


@pytest.mark.parametrize(
    ("method", "shape", "changed", "sentence"),
    [
        ("bitdelta", (40, 64), {"scales": torch.ones(39)}, "'w' have .* which go with no matrix of 40 rows"),
        ("bitdelta", (40, 64), {"keep": torch.ones(2).to(torch.uint16)}, "'w' have .* which go with no matrix of 40 "),
        ("magnitude", (40, 64), {"width": torch.tensor([48], dtype=torch.uint8)}, "'w'"),
        ("magnitude", (10, 10), {}, "tensor of 100 entries"),
    ],
)
def test_what_goes_with_no_such_matrix_is_said(
    method: str, shape: tuple[int, int], changed: Codes, sentence: str
) -> None:
    request, projection = request_of(method, 20), Projection.of(decaying_delta(40, 64), "w")
    codes = encode(projection, request)
    with pytest.raises(CorruptArtifactError, match=sentence):
        decode({**codes, **changed}, replace(projection, shape=shape), request)


@pytest.mark.parametrize("method", sorted({*METHODS} - {"magnitude"}))  # few of its bytes may be of a huge matrix
def test_codes_said_to_be_of_a_huge_matrix_are_refused_before_memory_is_taken(method: str) -> None:
    request, projection = request_of(method, 4), Projection.of(decaying_delta(48, 64), "w")
    with pytest.raises(CorruptArtifactError, match="'w'"):
        decode(encode(projection, request), replace(projection, shape=(1 << 24, 1 << 24)), request)


@pytest.mark.parametrize(("method", "options"), VARIANTS, ids=str)
def test_another_mask_is_noticed_where_it_keeps_another_number(method: str, options: dict[str, bool]) -> None:
    request = request_of(method, 20, options=options)
    projection, refused = Projection.of(decaying_delta(96, 128), "w"), 0
    codes = encode(projection, request)
    expected = decode(codes, projection, request)
    for number in range(1, 9):
        for name, seed in (("w", number), (f"w{number}", 0)):
            try:
                found = METHODS.get(method).decode(codes, name, (96, 128), seed)
            except CorruptArtifactError as error:
                assert f"'{name}'" in str(error)
                assert method in QUANTIZING or "its mask keeps" in str(error)
                refused += 1
            else:
                assert torch.equal(found, expected) == (method in WITHOUT_MASKS)
    assert (refused == 0) == (method in WITHOUT_MASKS)
