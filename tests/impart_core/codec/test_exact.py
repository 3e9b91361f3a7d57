"""Tensors bit for bit: any bits of any dtype come back, in the smallest of the ways, by integers alone."""

from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from impart_core.base.errors import CorruptArtifactError
from impart_core.checkpoint.header import DTYPES
from impart_core.codec.exact import (
    RESIDUAL_VERSION,
    VERSION,
    bits_of,
    check_exact,
    decode_exact,
    encode_exact,
    encode_residual,
)
from impart_core.codec.format import DIFFERENCE, EXACT, OMITTED, PLANES, RESIDUAL, SPARSE, VALUE
from impart_core.codec.parts import Codes, nbytes
from impart_core.codec.planes import encode_planes
from impart_core.codec.positions import position_bytes

FLOATING = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]


def of_bits(bits: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor of these bits."""
    return torch.frombuffer(bytearray(bits.tobytes()), dtype=dtype) if len(bits) else torch.empty(0, dtype=dtype)


def any_bits(dtype: torch.dtype, size: int) -> st.SearchStrategy[Any]:
    """Draw a tensor's bits, also those in which values seldom come: NaN with payloads, zeros, denormals, infinities."""
    return npst.arrays(f"<u{dtype.itemsize}", size)


def odd_values(dtype: torch.dtype) -> torch.Tensor:
    """Return every kind of value that a floating dtype has, of either sign."""
    top, infinity = 1 << (8 * dtype.itemsize - 1), int(bits_of(torch.tensor([torch.inf], dtype=dtype))[0])
    kinds = [0, 1, infinity - 1, infinity, infinity + 1, infinity + 2, top - 1, infinity // 2]
    bits = np.array([kind + sign for kind in kinds for sign in (0, top)], dtype=f"<u{dtype.itemsize}")
    return of_bits(bits, dtype)


def rebuilt(value: torch.Tensor, reference: torch.Tensor | None) -> tuple[str, torch.Tensor]:
    """Return how a tensor is stored, and what comes back."""
    way, codes = encode_exact(value, reference)
    if way in EXACT:
        check_exact(way, codes, "w", value.shape, value.dtype)
        return way, decode_exact(way, codes, "w", value.shape, None if way == PLANES else reference, value.dtype)
    assert way in (OMITTED, VALUE)
    back = reference if way == OMITTED else codes["value"]
    assert back is not None
    return way, back


def require_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert np.array_equal(bits_of(found), bits_of(expected))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@given(data=st.data())
def test_any_bits_come_back(dtype: torch.dtype, data: Any) -> None:
    size = data.draw(st.integers(0, 60))
    value, reference = (data.draw(any_bits(dtype, size)) for _ in range(2))
    kept = data.draw(npst.arrays(bool, size))
    value = np.where(kept, reference, value)
    require_same(rebuilt(of_bits(value, dtype), of_bits(reference, dtype))[1], of_bits(value, dtype))
    require_same(rebuilt(of_bits(value, dtype), None)[1], of_bits(value, dtype))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@given(data=st.data())
def test_any_bits_come_back_from_what_is_lossy(dtype: torch.dtype, data: Any) -> None:
    size = data.draw(st.integers(0, 60))
    value, base, lossy = (data.draw(any_bits(dtype, size)) for _ in range(3))
    of_base, of_lossy = (data.draw(npst.arrays(bool, size)) for _ in range(2))
    value = np.where(of_base, base, np.where(of_lossy, lossy, value))
    ours, *others = (of_bits(bits, dtype) for bits in (value, lossy, base))
    way, codes = encode_residual(ours, *others)
    assert nbytes(codes) <= ours.nbytes
    reference = {RESIDUAL: others[0], PLANES: None}.get(way, others[1])
    if way in EXACT:
        check_exact(way, codes, "w", ours.shape, dtype)
        require_same(decode_exact(way, codes, "w", ours.shape, reference, dtype), ours)
    else:
        require_same(codes["value"] if way == VALUE else others[1], ours)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_every_kind_of_value_comes_back_from_every_other(dtype: torch.dtype) -> None:
    odd = odd_values(dtype)
    value, reference = odd.repeat(len(odd), 40).T.reshape(-1), odd.repeat(len(odd) * 40)
    for one, other in ((value, reference), (reference, value), (value, None)):
        way, back = rebuilt(one.contiguous(), other)
        assert way in EXACT
        require_same(back, one)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_neighbours_differ_by_one_also_across_zero(dtype: torch.dtype) -> None:
    bits = np.array([3, 2, 1, 0], dtype=f"<u{dtype.itemsize}")
    down = np.concatenate([bits, bits[::-1] | bits.dtype.type(1 << (8 * bits.itemsize - 1))])  # 3, …, 0, −0, …, −3
    values = of_bits(np.tile(down, 400), dtype)
    way, codes = encode_exact(values[1:8].repeat(400), values[:7].repeat(400))
    assert way == DIFFERENCE
    plain = decode_exact(way, codes, "w", (2800,), torch.zeros(2800, dtype=dtype), dtype)
    assert np.unique(bits_of(plain)).tolist() == [1 << (8 * dtype.itemsize - 1)]  # one below zero: −0


def finetuned(share: float, dtype: torch.dtype, size: int = 40_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a base and a fine-tune of which this share of the entries is changed a little."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(size, generator=generator)
    changed = torch.rand(size, generator=generator) < share
    return base.to(dtype), (base + 0.01 * changed * torch.randn(size, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("share", "expected", "least"),
    [(0, OMITTED, 1e9), (0.001, SPARSE, 200), (0.02, SPARSE, 12), (0.3, SPARSE, 1.9), (1, DIFFERENCE, 1.2)],
)
def test_each_tensor_is_stored_in_the_way_that_is_smallest_for_it(
    dtype: torch.dtype, share: float, expected: str, least: float
) -> None:
    base, value = finetuned(share, dtype)
    way, codes = encode_exact(value, base)
    assert way == expected
    assert value.nbytes / max(1e-6, nbytes(codes)) > least


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int16], ids=str)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.4, 0.7])
@pytest.mark.parametrize("run", [1, 64])  # entries that change together
def test_what_a_sample_tells_is_hardly_larger_than_the_smallest(dtype: torch.dtype, share: float, run: int) -> None:
    generator = np.random.default_rng(0)
    changed = np.repeat(generator.random(100_000 // run) < share, run)
    steps = torch.from_numpy(changed * generator.integers(1, 20, len(changed))).to(torch.int16)
    base = torch.from_numpy(generator.integers(0, 1 << 14, len(changed))).to(torch.int16)  # bfloat16's bits, or values
    of_kind = {torch.bfloat16: lambda bits: bits.view(torch.bfloat16), torch.int16: lambda bits: bits}
    kind = of_kind.get(dtype, lambda bits: bits.view(torch.bfloat16).to(dtype))
    differences = changed_keys(kind(base + steps), kind(base))
    there = np.flatnonzero(differences)
    sparse = nbytes(planes_of(differences[there])) + position_bytes(there)
    _, codes = encode_exact(kind(base + steps), kind(base))
    assert nbytes(codes) <= 1.1 * min(sparse, nbytes(planes_of(differences))) + 1  # one byte for the width


def changed_keys(value: torch.Tensor, reference: torch.Tensor) -> Any:
    """Return the differences of values above zero, folded, by the definition."""
    return 2 * (bits_of(value) - bits_of(reference))


def planes_of(integers: Any) -> Codes:
    return encode_planes(lambda start, stop: integers[start:stop].copy(), len(integers))


def test_what_a_base_does_not_help_is_stored_by_itself() -> None:
    base, value = torch.randn(40_000).bfloat16(), torch.ones(40_000).bfloat16()
    assert encode_exact(value, base)[0] == PLANES
    assert encode_exact(torch.randn(40_000).bfloat16(), None)[0] == PLANES
    noise = torch.randint(0, 256, (40_000,), dtype=torch.uint8)
    assert encode_exact(noise, None)[0] == encode_exact(noise, noise.flip(0))[0] == VALUE


def test_a_residual_is_stored_where_it_is_smallest() -> None:
    base, value = finetuned(1, torch.bfloat16)
    noise = torch.randn(len(value), generator=torch.Generator().manual_seed(1))
    nearer, near = ((value.float() + size * noise).bfloat16() for size in (1e-3, 7e-3))
    few = torch.where(torch.arange(len(value)) % 100 == 0, base, value)
    for lossy, expected, parts in (
        (value, RESIDUAL, 0),
        (few, RESIDUAL, 6),
        (nearer, RESIDUAL, 6),
        (near, RESIDUAL, 3),
        (-value, DIFFERENCE, 3),
    ):
        way, codes = encode_residual(value, lossy, base)
        assert (way, len(codes)) == (expected, parts)
        assert nbytes(codes) <= nbytes(encode_exact(value, base)[1])
    assert encode_residual(value, near, value) == (OMITTED, {})
    assert encode_residual(value, value, None) == (RESIDUAL, {})


@given(st.integers(0, 300), st.floats(0, 1), st.sampled_from(FLOATING))
def test_nothing_takes_more_than_the_tensor_itself(size: int, share: float, dtype: torch.dtype) -> None:
    base, value = finetuned(share, dtype, size)
    assert nbytes(encode_exact(value, base)[1]) <= value.nbytes


def known(share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a base and a fine-tune that follow from whole numbers."""
    at = torch.arange(20_000)
    base = ((at * 7919) % 4096 - 2048).float() / 512
    step = ((at * 104_729) % 17 - 8) * ((at * at * 31_337) % 10_007 < 10_007 * share)
    return base.bfloat16(), (base + step / 256).bfloat16()


def digest(codes: Codes) -> str:
    """Return the beginning of the SHA-256 of parts, by name."""
    found = sha256()
    for part, code in sorted(codes.items()):
        found.update(f"{part}{code.dtype}{list(code.shape)}".encode() + code.numpy().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(
    ("way", "share", "expected"),
    [(DIFFERENCE, 1, "bf0e154e96847329"), (SPARSE, 0.03, "1d0f67a6e16b757e"), (PLANES, 0, "7f27fd4a68a4b456")],
)
def test_golden_codes(way: str, share: float, expected: str) -> None:
    base, value = known(share)
    found, codes = encode_exact(value, None if way == PLANES else base)
    assert (found, digest(codes), VERSION) == (way, expected, 2)


def test_golden_residual() -> None:
    base, value = known(1)
    found, codes = encode_residual(value, base, None)
    assert (found, digest(codes), RESIDUAL_VERSION) == (RESIDUAL, "bf0e154e96847329", 2)


@pytest.mark.parametrize("way", EXACT)
def test_what_is_damaged_is_refused_by_name(way: str) -> None:
    base, value = known(0.03 if way == SPARSE else 1)
    found, codes = encode_exact(value, None if way == PLANES else base)
    found, codes = encode_residual(value, base, None) if way == RESIDUAL else (found, codes)
    assert found == way
    others = {f"no {part}": {name: code for name, code in codes.items() if name != part} for part in codes}
    for part, code in codes.items():
        others |= {f"{part} {change}": {**codes, part: other} for change, other in changes(code).items()}
    for what, other in others.items():
        with pytest.raises(CorruptArtifactError, match="'w'"):
            raise AssertionError(f"{what}: {decode_exact(way, other, 'w', value.shape, base, value.dtype)}")
        with pytest.raises(CorruptArtifactError, match="'w'"):
            raise AssertionError(f"{what}: {check_exact(way, other, 'w', value.shape, value.dtype)}")
    for shape in ((10,), *([] if way == SPARSE else [(1 << 17, 1 << 17)])):  # few bytes may be of a huge tensor
        with pytest.raises(CorruptArtifactError, match="'w'"):
            check_exact(way, codes, "w", shape, value.dtype)


def changes(code: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a part otherwise than it was."""
    return {
        "cut": code[:-1],
        "longer": torch.cat([code, code[:1]]) if code.dtype == torch.uint8 else code.repeat(2),
        "empty": code[:0],
        "of another dtype": code.double(),
        "of another shape": code[None],
    }
