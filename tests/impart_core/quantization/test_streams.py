"""Streams: any bits under any mask come back exactly, in the bytes that were counted; any other parts are refused."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.lossless import BYTES_SQUEEZED, PACKED, SQUEEZED, squeeze
from impart_core.codec.parts import Codes, nbytes
from impart_core.quantization.cost import stream_bytes
from impart_core.quantization.grid import Bits, RowRange
from impart_core.quantization.groups import Groups
from impart_core.quantization.solve import quantize_matrix
from impart_core.quantization.streams import (
    LARGEST_GROUP,
    MOST_SAVED,
    QuantizedMatrix,
    check_matrices,
    describe_streams,
    layout_bytes,
    pack_matrices,
    read_layout,
    require_plausible,
    unpack_matrices,
)
from tests.impart_core.quantization.samples import factor_of, row_ranges


def quantized(
    ranges: tuple[RowRange, ...], columns: int, size: int | None, keep: float = 1.0, seed: int = 0
) -> QuantizedMatrix:
    values, mask = factor_of(ranges[-1].stop, columns, keep, seed)
    return quantize_matrix(values, Groups(mask, ranges, size), None, "w")


@st.composite
def matrices(draw: st.DrawFn) -> list[QuantizedMatrix]:
    """Draw one or two quantised matrices of the same ranges and group size."""
    rows = draw(st.integers(1, 8))
    ranges, size = draw(row_ranges(rows)), draw(st.none() | st.integers(1, 70))
    keeps = st.sampled_from([0.0, 0.05, 0.5, 1.0])
    sides = draw(st.lists(st.tuples(st.integers(1, 40), keeps, st.integers(0, 9)), min_size=1, max_size=2))
    return [quantized(ranges, columns, size, keep, seed) for columns, keep, seed in sides]


@given(made=matrices(), lossless=st.booleans())
@settings(max_examples=200, deadline=None)
def test_what_was_packed_comes_back_exactly_and_masked_entries_are_zero(
    made: list[QuantizedMatrix], lossless: bool
) -> None:
    codes = pack_matrices(made, lossless)
    found = unpack_matrices(codes, "w", [matrix.groups.mask for matrix in made])
    for values, matrix in zip(found, made, strict=True):
        assert values.dtype == torch.float32
        assert torch.equal(values, matrix.values())
        assert not values[~matrix.groups.mask].any()
        grid = matrix.groups.entries(matrix.scales, matrix.zeros)
        assert torch.equal(values[matrix.groups.mask], grid.values(matrix.codes)[matrix.groups.mask])


@given(made=matrices())
@settings(max_examples=100, deadline=None)
def test_bytes_are_exactly_those_counted_and_the_lossless_stage_never_makes_codes_larger(
    made: list[QuantizedMatrix],
) -> None:
    counted = [stream_bytes(each.groups.ranges, each.groups.kept, each.groups.size) for each in made]
    plain, small = pack_matrices(made, lossless=False), pack_matrices(made, lossless=True)
    ranges, total = len(made[0].groups.ranges), sum(each.total for each in counted)
    assert nbytes(plain) == total + layout_bytes(ranges, len(made), lossless=False)
    assert nbytes(small) <= total + layout_bytes(ranges, len(made), lossless=True)
    assert plain["codes"].nbytes == sum(each.codes for each in counted) >= small["codes"].nbytes
    assert plain["layout"].nbytes == layout_bytes(ranges, len(made), lossless=False)
    described = sum(small[part].nbytes for part in ("layout", "forms", "lengths", "packed"))
    assert described == layout_bytes(ranges, len(made), lossless=True)


@given(made=matrices(), lossless=st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_same_matrices_are_packed_the_same_each_time(made: list[QuantizedMatrix], lossless: bool) -> None:
    first, second = (pack_matrices(made, lossless) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[part], second[part]) for part in first)


@pytest.mark.parametrize(("bits", "at_most"), [(2, 0.76), (3, 0.9), (4, 0.93), (8, 0.98)])
def test_gaussian_codes_take_less_than_their_bits_as_measured(bits: Bits, at_most: float) -> None:
    small = pack_matrices([quantized((RowRange(0, 64, bits),), 1024, 128)], lossless=True)
    # The docstring's shares, of streams of megabytes; these are of 64 Ki codes.
    assert small["codes"].numel() < at_most * 64 * 1024 * bits / 8
    assert small["forms"].tolist() != [PACKED]


def test_each_stream_is_stored_in_its_smallest_form() -> None:
    ranges = (RowRange(0, 1, 2), RowRange(1, 2, 8))
    mask = torch.ones(2, 400, dtype=torch.bool)
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(np.stack([np.arange(400) % 2, rng.integers(0, 256, 400)])).float()
    made = QuantizedMatrix(Groups(mask, ranges, None), torch.ones(2).half(), torch.zeros(2, dtype=torch.uint8), codes)
    small = pack_matrices([made], lossless=True)
    assert small["forms"].tolist()[0] in (SQUEEZED, BYTES_SQUEEZED)
    assert small["forms"].tolist()[1] == PACKED  # noise of all eight bits cannot be made smaller
    assert small["lengths"].tolist()[1] == 400


def test_what_little_there_is_cannot_claim_much() -> None:
    """A stream of one code throughout could be stored in next to nothing; it is not, as it could not be told apart."""
    mask = torch.ones(4, 40_000, dtype=torch.bool)
    groups = Groups(mask, (RowRange(0, 4, 8),), None)
    made = QuantizedMatrix(groups, torch.ones(1).half(), torch.zeros(1, dtype=torch.uint8), torch.ones(4, 40_000))
    codes = pack_matrices([made], lossless=True)
    assert codes["codes"].numel() * MOST_SAVED >= 160_000
    assert torch.equal(unpack_matrices(codes, "w", [mask])[0], torch.ones(4, 40_000))


def test_the_layout_in_figures() -> None:
    ranges = (RowRange(0, 2, 8), RowRange(2, 3, 16), RowRange(3, 8, 3))
    codes = pack_matrices([quantized(ranges, 20, 7), quantized(ranges, 30, 7)], lossless=True)
    assert codes["layout"].tolist() == [7, 1, 8, 2, 16, 1, 3, 5]
    assert {part: code.dtype for part, code in codes.items()} == {
        "layout": torch.uint16,
        "scales": torch.float16,
        "zeros": torch.uint8,
        "forms": torch.uint8,
        "lengths": torch.uint32,
        "packed": torch.uint32,
        "codes": torch.uint8,
    }
    groups = [-(-40 // 7) + -(-100 // 7), -(-60 // 7) + -(-150 // 7)]
    assert codes["scales"].shape == (sum(groups),)
    assert codes["zeros"].shape == (6 + -(-15 * 3 // 8) + 9 + -(-22 * 3 // 8),)
    assert codes["forms"].shape == codes["lengths"].shape == (6,)
    assert codes["packed"].tolist() == [40 + 40 + -(-100 * 3 // 8) + 60 + 60 + -(-150 * 3 // 8)]
    whole = pack_matrices([quantized(ranges, 20, None)], lossless=False)
    assert whole["layout"].tolist() == [0, 0, 8, 2, 16, 1, 3, 5]
    layout = read_layout(whole, "w", 8)
    assert (layout.ranges, layout.size, layout.lossless) == (ranges, None, False)


def test_16_bits_are_the_float16_itself_up_to_its_largest() -> None:
    values = torch.tensor([[0.1, -65504.0, 2**-24, 70000.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    made = quantize_matrix(values, Groups(mask, (RowRange(0, 1, 16),), None), None, "w")
    for lossless in (False, True):
        codes = pack_matrices([made], lossless)
        found = unpack_matrices(codes, "w", [mask])[0]
        assert found.tolist() == [[float(torch.tensor(0.1).half()), -65504.0, 2**-24, 65504.0]]
    assert pack_matrices([made], lossless=False)["codes"].numpy().view(np.float16).tolist() == found.half()[0].tolist()


RANGES = (RowRange(0, 1, 8), RowRange(1, 2, 16), RowRange(2, 6, 3))
MASK = factor_of(6, 400, 0.8)[1]
Change = Callable[[Codes], Codes]


def hostile(lossless: bool) -> Codes:
    """Return parts of which, where they may be, some streams are squeezed and some are not."""
    return pack_matrices([quantized(RANGES, 400, 128, 0.8)], lossless)


def with_part(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda codes: {**codes, part: change(codes[part])}


def with_number(part: str, at: int, value: float) -> Change:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        found = tensor.clone().numpy()
        found[at] = value
        return torch.from_numpy(found)

    return with_part(part, change)


PARTS = ["layout", "scales", "zeros", "codes"]
ANY: dict[str, Change] = {
    **{f"no {part}": (lambda codes, part=part: {k: v for k, v in codes.items() if k != part}) for part in PARTS},
    **{f"{part} cut": with_part(part, lambda t: t[:-1]) for part in PARTS},
    **{f"{part} longer": with_part(part, lambda t: torch.cat([t, t[:1]])) for part in PARTS},
    **{f"{part} empty": with_part(part, lambda t: t[:0]) for part in PARTS},
    **{f"{part} of another dtype": with_part(part, lambda t: t.float().double()) for part in PARTS},
    **{f"{part} of another shape": with_part(part, lambda t: t[None]) for part in PARTS},
    "5 bits": with_number("layout", 2, 5),
    "no bits": with_number("layout", 2, 0),
    "1 bit": with_number("layout", 2, 1),
    "a range of no rows": with_number("layout", 3, 0),
    "more rows": with_number("layout", 3, 2),
    "another group size": with_number("layout", 0, 100),
    "one group a range": with_number("layout", 0, 0),
    "neither lossless nor not": with_number("layout", 1, 2),
    "wider codes": with_number("layout", 6, 4),
    "only what comes first": with_part("layout", lambda t: t[:2]),
    "rows without bits": with_part("layout", lambda t: t[:5]),
    "a scale that is no number": with_number("scales", 1, float("nan")),
    "an infinite scale": with_number("scales", 0, float("inf")),
}
DESCRIBED = ("forms", "lengths", "packed")
LOSSLESS: dict[str, Change] = {
    **{f"no {part}": (lambda codes, part=part: {k: v for k, v in codes.items() if k != part}) for part in DESCRIBED},
    **{f"{part} cut": with_part(part, lambda t: t[:-1]) for part in DESCRIBED},
    **{f"{part} longer": with_part(part, lambda t: torch.cat([t, t[:1]])) for part in ("forms", "packed")},
    **{f"{part} of another dtype": with_part(part, lambda t: t.double()) for part in DESCRIBED},
    "another packed size": lambda codes: with_number("packed", 0, int(codes["packed"][0]) + 1)(codes),
    "a form that is not known": with_number("forms", 0, 3),
    "a stream longer than it may be": with_number("lengths", 0, 1 << 31),
    "a stream of nothing": with_number("lengths", 2, 0),
    "a stream shorter": lambda codes: with_number("lengths", 2, int(codes["lengths"][2]) - 1)(codes),
    "bytes to their neighbour": lambda codes: with_number("lengths", 0, int(codes["lengths"][0]) - 1)(
        with_number("lengths", 1, int(codes["lengths"][1]) + 1)(codes)
    ),
    "a byte that was packed to its neighbour": lambda codes: with_number("lengths", 2, int(codes["lengths"][2]) + 1)(
        with_number("lengths", 1, int(codes["lengths"][1]) - 1)(codes)
    ),
    "packed said to be squeezed": with_number("forms", 1, SQUEEZED),
    "16 bits of a byte a code": with_number("forms", 1, BYTES_SQUEEZED),
    "noise": with_part("codes", lambda t: t ^ 0xFF),
}
CASES = [(lossless, name) for lossless in (False, True) for name in (*ANY, *(LOSSLESS if lossless else ()))]


def read(codes: Codes, name: str, masks: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return what the parts stand for; checking them without that must find the same."""
    kept = [lambda span, mask=mask: int(mask[span.rows].sum()) for mask in masks]
    try:
        found = unpack_matrices(codes, name, masks)
    except CorruptArtifactError as error:
        with pytest.raises(CorruptArtifactError, match=re.escape(str(error))):
            check_matrices(codes, name, len(masks[0]), kept)
        raise
    check_matrices(codes, name, len(masks[0]), kept)
    return found


@pytest.mark.parametrize(("lossless", "name"), CASES)
def test_parts_that_are_not_of_such_matrices_are_refused_by_name(lossless: bool, name: str) -> None:
    changed = {**ANY, **LOSSLESS}[name] if lossless else ANY[name]
    codes = hostile(lossless)
    assert read(codes, "layer.w", [MASK])[0].shape == (6, 400)
    with pytest.raises(CorruptArtifactError, match=r"'layer\.w'"):
        read(changed(codes), "layer.w", [MASK])


def test_the_cases_have_streams_of_both_kinds() -> None:
    forms = hostile(lossless=True)["forms"].tolist()
    assert forms[1] == PACKED
    assert forms[2] != PACKED


def test_another_mask_is_refused() -> None:
    for lossless in (False, True):
        with pytest.raises(CorruptArtifactError, match="'w'"):
            read(hostile(lossless), "w", [~MASK])
        with pytest.raises(CorruptArtifactError, match="laid out for 6 rows, but it has 5"):
            read(hostile(lossless), "w", [MASK[:5]])
        with pytest.raises(CorruptArtifactError, match="'w'"):
            read(hostile(lossless), "w", [MASK, MASK])


def test_a_code_that_its_bits_do_not_hold_is_refused() -> None:
    mask = torch.ones(1, 4000, dtype=torch.bool)
    made = quantize_matrix(torch.ones(1, 4000), Groups(mask, (RowRange(0, 1, 2),), None), None, "w")
    for highest in (3, 4):
        data = np.frombuffer(squeeze(bytes([0, 1, 2, highest] * 1000)), dtype=np.uint8).copy()
        codes = pack_matrices([made], lossless=True)
        codes["forms"] = torch.tensor([BYTES_SQUEEZED], dtype=torch.uint8)
        codes["lengths"] = torch.tensor([len(data)], dtype=torch.uint32)
        codes["codes"] = torch.from_numpy(data)
        if highest == 3:
            assert read(codes, "w", [mask])[0].shape == (1, 4000)
        else:
            with pytest.raises(CorruptArtifactError, match="one that does not fit 2 bits"):
                read(codes, "w", [mask])


@given(part=st.sampled_from([*PARTS, *DESCRIBED]), data=st.data(), lossless=st.booleans())
@settings(max_examples=200, deadline=None)
def test_whatever_bytes_a_part_holds_it_is_read_or_refused(part: str, data: st.DataObject, lossless: bool) -> None:
    codes = hostile(lossless)
    if part not in codes:
        return
    raw = codes[part].contiguous().view(torch.uint8).numpy().copy()
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    codes[part] = torch.from_numpy(raw).view(codes[part].dtype)
    try:
        (found,) = read(codes, "w", [MASK])
    except CorruptArtifactError:
        return
    assert found.shape == MASK.shape
    assert not found[~MASK].any()


@given(made=matrices(), lossless=st.booleans())
@example(made=[quantized((RowRange(0, 4, 2),), 30, None, 0.0)], lossless=True)
@settings(max_examples=60, deadline=None)
def test_whatever_was_packed_is_plausible_for_its_entries(made: list[QuantizedMatrix], lossless: bool) -> None:
    require_plausible(pack_matrices(made, lossless), "w", float(sum(int(m.groups.mask.sum()) for m in made)))


@pytest.mark.parametrize("stored", [0, 100])
def test_bytes_far_too_few_for_their_entries_are_refused_before_memory_is_taken(stored: int) -> None:
    codes: dict[str, Any] = {"codes": torch.zeros(stored, dtype=torch.uint8)}
    most = 2 * MOST_SAVED * (stored + 64) * 8 / 2  # at two bits, saved as far as may be, and half as many again
    require_plausible(codes, "w", most)
    with pytest.raises(CorruptArtifactError, match=rf"codes of 'w' are {stored} bytes, far too few for"):
        require_plausible(codes, "w", most * 1.01)
    with pytest.raises(CorruptArtifactError, match="no part 'codes'"):
        require_plausible({}, "w", 1)


@given(made=matrices(), lossless=st.booleans())
@settings(max_examples=40, deadline=None)
def test_streams_say_their_bits_their_group_size_and_what_they_would_take_uncompressed(
    made: list[QuantizedMatrix], lossless: bool
) -> None:
    codes = pack_matrices(made, lossless)
    found, groups = describe_streams(codes), made[0].groups
    assert found is not None
    assert found.bits == ",".join(f"{span.bits}x{span.stop - span.start}" for span in groups.ranges)
    assert (found.size, found.packed) == (groups.size, pack_matrices(made, lossless=False)["codes"].numel())
    stack = describe_streams({f"{index}.{part}": code for index in (0, 2) for part, code in codes.items()})
    assert stack is not None
    assert (stack.bits, stack.size, stack.packed) == (found.bits, found.size, 2 * found.packed)


def test_codes_of_other_methods_say_nothing_of_streams() -> None:
    assert describe_streams({"sigma": torch.ones(3), "u": torch.ones(3).half()}) is None


def test_a_group_may_be_as_large_as_its_number_holds() -> None:
    codes = pack_matrices([quantized((RowRange(0, 2, 2),), 8, LARGEST_GROUP)], lossless=False)
    assert codes["layout"].tolist()[0] == LARGEST_GROUP == 65535
