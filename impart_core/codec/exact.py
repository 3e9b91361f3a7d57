"""Tensors bit for bit, against another of the same dtype and shape or by themselves (docs/format.md).

A value's bits become an integer, its *key*, in an order that is that of the values: the keys of two values that follow
each other differ by one. What is stored is the difference of the keys, modulo 2^bits, its sign in the lowest bit. Only
integers are computed with, so that the same bits come back on every machine, whatever they stand for: NaN with any
payload, both zeros, infinities.

The tensor to compare with may be any that a reader has at hand in the same bits: the base's, or what a lossy delta
rebuilds. What is stored beside the latter is its *residual*.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from impart_core.codec.format import DIFFERENCE, OMITTED, PLANES, RESIDUAL, SPARSE, VALUE
from impart_core.codec.parts import Codes, nbytes, read_part
from impart_core.codec.planes import (
    PLANES_PARTS,
    Given,
    Integers,
    best_rotation,
    check_planes,
    decode_planes,
    encode_planes,
    sample_of,
)
from impart_core.codec.positions import (
    Int64Array,
    PositionCodes,
    decode_positions,
    encode_positions,
    position_bytes,
)

VERSION = 2  # raised whenever the same tensors give other bytes
RESIDUAL_VERSION = 2  # likewise, of what is stored beside the same lossy delta
EXACT_PARTS: dict[str, tuple[str, ...]] = {
    PLANES: PLANES_PARTS,
    DIFFERENCE: PLANES_PARTS,
    SPARSE: (*PLANES_PARTS, "quotients", "remainders", "width"),
    RESIDUAL: (*PLANES_PARTS, "quotients", "remainders", "width"),  # all, or those of a difference, or none
}
_WORTH_POSITIONS = 15 / 16  # of the bytes of all differences: positions of most entries take longer both ways
_FEW = 1 / 64  # of the entries: where no more changed, a sample has too little of them to tell anything
Signed = npt.NDArray[np.signedinteger]


class _Look(NamedTuple):
    """What a sample of the differences from a reference tells.

    Attributes:
        way: the better way to store them.
        nbytes: about how many bytes that takes.
        rotation: of the planes of all entries.
    """

    way: str
    nbytes: float
    rotation: int


def encode_exact(value: torch.Tensor, reference: torch.Tensor | None) -> tuple[str, Codes]:
    """Return how a tensor is stored in the fewest bytes, as far as a sample tells, and its parts.

    Args:
        value: the tensor, any dtype and shape, on the CPU.
        reference: a tensor of the same dtype and shape that a reader will have; None: there is none.

    Returns:
        `omitted` (the bits are those of the reference), `sparse` (differences where there are some), `difference`,
        `planes` (the bits themselves), or `value` (as it is); and the codes.
    """
    return _encoded(value, None if reference is None else bits_of(reference), None)


def encode_residual(value: torch.Tensor, lossy: torch.Tensor, base: torch.Tensor | None) -> tuple[str, Codes]:
    """Return how a tensor is stored in the fewest bytes where a reader also has what a lossy delta rebuilds.

    A sample tells which of the two is the better one to compare with.

    Args:
        value: the tensor, as for `encode_exact`.
        lossy: what the delta rebuilds, of the same dtype and shape.
        base: the base's tensor, likewise; None: there is none.

    Returns:
        `residual` (the parts of a `sparse`, of a `difference`, or none: it is what the delta rebuilds), or what
        `encode_exact` returns.
    """
    bits, floating = bits_of(value), value.is_floating_point()
    if base is not None and np.array_equal(bits, bits_of(base)):
        return OMITTED, {}
    if np.array_equal(bits, bits_of(lossy)):
        return RESIDUAL, {}
    look = _look(bits, bits_of(lossy), floating)
    if base is not None and (of_base := _look(bits, bits_of(base), floating)).nbytes < look.nbytes:
        return _encoded(value, bits_of(base), of_base)
    way, codes = _encoded(value, bits_of(lossy), look)
    return RESIDUAL if way in (SPARSE, DIFFERENCE) else way, codes


def decode_exact(
    way: str, codes: Codes, name: str, shape: tuple[int, ...], reference: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return the tensor of this shape and dtype, on the CPU.

    Args:
        way: `planes`, `difference`, `sparse` or `residual`.
        codes: the parts.
        name: the tensor, for errors.
        shape: its shape.
        reference: what it was compared with, of the same shape and dtype; None for `planes`.
        dtype: its dtype.

    Raises:
        CorruptArtifactError: the codes are not those of such a tensor.
    """
    count, width = _measures(shape, dtype)
    if way == PLANES:
        chunks = decode_planes(codes, name, count, width)
        bits = np.zeros(count, dtype=f"<u{width}")
        for part, integers in _parts(bits, chunks):
            part[:] = integers
        return _tensor(bits, shape, dtype)
    assert reference is not None
    bits, floating = bits_of(reference).copy(), dtype.is_floating_point
    if not _stores_any(way, codes):
        return _tensor(bits, shape, dtype)
    positions = _positions(codes, name, count) if _is_sparse(way, codes) else None
    changing = bits if positions is None else bits[positions]
    for part, integers in _parts(changing, decode_planes(codes, name, len(changing), width)):
        part[:] = _from_keys(_keys(part, floating) + _unfolded(integers), floating)
    if positions is not None:
        bits[positions] = changing
    return _tensor(bits, shape, dtype)


def check_exact(way: str, codes: Codes, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Check that codes decode, without the memory of the tensor; arguments and errors as for `decode_exact`."""
    count, width = _measures(shape, dtype)
    if not _stores_any(way, codes):
        return
    if _is_sparse(way, codes):
        count = len(_positions(codes, name, count))
    check_planes(codes, name, count, width)


def bits_of(tensor: torch.Tensor) -> Integers:
    """Return the bits of a tensor, (n,), little-endian; a contiguous tensor's share its memory."""
    octets = tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
    return octets.numpy().view(f"<u{tensor.element_size()}")


def _encoded(value: torch.Tensor, reference: Integers | None, look: _Look | None) -> tuple[str, Codes]:
    """Return a tensor as `encode_exact` does, given its reference's bits and what a look at them told, if any."""
    bits = bits_of(value)
    found: list[tuple[str, Codes]] = [(VALUE, {"value": value})]
    if reference is not None:
        coded = _against(bits, reference, value.is_floating_point(), look)
        if coded is None:
            return OMITTED, {}
        found.append(coded)
    own = partial(_copied, bits)
    sample = sample_of(own, len(bits))
    rotation, size = best_rotation(sample)
    if reference is None or size * len(bits) < nbytes(found[-1][1]) * len(sample):
        found.append((PLANES, encode_planes(own, len(bits), rotation)))
    return min(found, key=lambda one: nbytes(one[1]))


def _against(bits: Integers, reference: Integers, floating: bool, look: _Look | None) -> tuple[str, Codes] | None:
    """Return what differs from a reference as codes; None where nothing does."""
    changed = bits != reference
    number = int(np.count_nonzero(changed))
    if not number:
        return None
    if number > _FEW * len(bits):
        look = look or _look(bits, reference, floating)
        if look.way == DIFFERENCE:
            differences = partial(_differences, bits, reference, floating)
            return DIFFERENCE, encode_planes(differences, len(bits), look.rotation)
    positions = np.flatnonzero(changed)

    def differences_there(start: int, stop: int) -> Integers:
        there = positions[start:stop]
        return _differences(bits.take(there), reference.take(there), floating, 0, len(there))

    return SPARSE, _sparse(positions, differences_there)


def _look(bits: Integers, reference: Integers, floating: bool) -> _Look:
    """Look at a sample of the differences of two tensors' bits."""
    sample = sample_of(partial(_differences, bits, reference, floating), len(bits))
    changed = np.flatnonzero(sample)
    rotation, dense = best_rotation(sample)
    sparse = best_rotation(sample[changed])[1] + position_bytes(changed)
    way, size = (SPARSE, sparse) if sparse < _WORTH_POSITIONS * dense else (DIFFERENCE, dense)
    return _Look(way, size * len(bits) / max(1, len(sample)), rotation)


def _is_sparse(way: str, codes: Codes) -> bool:
    """Return whether differences are of some positions; a residual's parts tell which of its forms it has."""
    return way == SPARSE or (way == RESIDUAL and "quotients" in codes)


def _stores_any(way: str, codes: Codes) -> bool:
    """Return whether anything differs: a residual without parts is of a tensor that the lossy delta rebuilds."""
    return way != RESIDUAL or bool(codes)


def _sparse(positions: Int64Array, differences: Given) -> Codes:
    codes = encode_positions(positions)
    return {
        **encode_planes(differences, len(positions)),
        "quotients": torch.from_numpy(codes.quotients),
        "remainders": torch.from_numpy(codes.remainders),
        "width": torch.tensor([codes.width], dtype=torch.uint8),
    }


def _positions(codes: Codes, name: str, size: int) -> Int64Array:
    """Return the positions of what differs: as many as the quotients have ones."""
    quotients = read_part(codes, name, "quotients", torch.uint8, None).numpy()
    remainders = read_part(codes, name, "remainders", torch.uint8, None).numpy()
    width = int(read_part(codes, name, "width", torch.uint8, 1))
    count = int(np.bitwise_count(quotients).sum())
    return decode_positions(PositionCodes(width, quotients, remainders), count, size, name)


def _copied(bits: Integers, start: int, stop: int) -> Integers:
    return bits[start:stop].copy()


def _differences(bits: Integers, reference: Integers, floating: bool, start: int, stop: int) -> Integers:
    """Return the differences of the keys of two tensors' bits from one entry to another, each folded."""
    keys = _keys(bits[start:stop], floating)
    return _folded(np.subtract(keys, _keys(reference[start:stop], floating), out=keys if floating else None))


def _keys(bits: Integers, floating: bool) -> Integers:
    """Return integers in the order of the values, modulo 2^bits: those of integers are their bits."""
    if not floating:
        return bits
    kind, last = bits.dtype.type, 8 * bits.itemsize - 1
    negative = (_signed(bits) >> last).view(bits.dtype)  # all ones where the sign is set
    np.bitwise_or(negative, kind(1 << last), out=negative)
    np.bitwise_xor(bits, negative, out=negative)
    return negative


def _from_keys(keys: Integers, floating: bool) -> Integers:
    """Return the bits of keys."""
    if not floating:
        return keys
    kind, last = keys.dtype.type, 8 * keys.itemsize - 1
    positive = (_signed(keys) >> last).view(keys.dtype)  # all ones where the value's sign is not set
    np.invert(positive, out=positive)
    np.bitwise_or(positive, kind(1 << last), out=positive)
    np.bitwise_xor(keys, positive, out=positive)
    return positive


def _folded(differences: Integers) -> Integers:
    """Return differences modulo 2^bits as 0, −1, 1, −2, 2 … are counted."""
    signs = (_signed(differences) >> (8 * differences.itemsize - 1)).view(differences.dtype)
    np.bitwise_xor(differences << differences.dtype.type(1), signs, out=signs)
    return signs


def _unfolded(folded: Integers) -> Integers:
    """Return the differences that were folded."""
    one = folded.dtype.type(1)
    signs = np.negative((folded & one).view(_signed(folded).dtype)).view(folded.dtype)
    np.bitwise_xor(folded >> one, signs, out=signs)
    return signs


def _signed(integers: Integers) -> Signed:
    return integers.view(f"<i{integers.itemsize}")


def _parts(whole: Integers, chunks: Iterator[Integers]) -> Iterator[tuple[Integers, Integers]]:
    """Yield each chunk of integers with the part of the whole that it is of."""
    start = 0
    for chunk in chunks:
        yield whole[start : start + len(chunk)], chunk
        start += len(chunk)


def _tensor(bits: Integers, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor of these bits, in their memory: torch's own copy of a bool is 1 where its byte is 2."""
    return torch.from_numpy(bits).view(dtype).reshape(shape)


def _measures(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
    """Return the entries of a tensor, and the bytes of each."""
    return math.prod(shape), dtype.itemsize
