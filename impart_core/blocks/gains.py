"""Gains of a published block: which of its tensors have some, and its codes with those that a training found."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from impart_core.calibrate.distil import Trainable
from impart_core.checkpoint.header import DTYPES
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.reader import read_tensor
from impart_core.codec.format import ADDED, KEEP, BlockFile, EncodedTensor, TensorHeader
from impart_core.codec.half import decode_half, scaled_half
from impart_core.codec.parts import Codes
from impart_core.delta.fidelity import Fidelity, fidelity_of
from impart_core.methods import METHODS
from impart_core.methods.decode import decode_delta
from impart_core.methods.terms import Terms

_DELTA = "delta"  # the part of what is kept at 16 bits


def has_gains(role: Role, *, norms: bool) -> bool:
    """Return whether tensors of a role have gains: projections, and norms where they are asked for."""
    return role is Role.PROJECTION or (norms and role is Role.NORM)


def trainables_of(file: BlockFile, base: Checkpoint, *, norms: bool) -> Iterator[tuple[str, Callable[[], Trainable]]]:
    """Yield the tensors of a block that have gains, by name: matrices that a method coded, no stacks; and norms.

    Each is read and decoded when it is called for: together they would be as large as two models. A norm has a gain for
    each of its entries, which are stored at 16 bits anyway.

    Args:
        file: the block, which may be gone by then.
        base: the base's checkpoint.
        norms: whether norms are among them.
    """
    for name, header in file.headers.items():
        coded = header.method in METHODS and len(header.shape) == 2
        kept = header.method == KEEP and header.role is Role.NORM
        if has_gains(header.role, norms=norms) and (coded or kept) and ADDED not in header.parts:
            yield name, partial(_trainable, name, header, file.codes(name), base)


def _trainable(name: str, header: TensorHeader, codes: Codes, base: Checkpoint) -> Trainable:
    def stored(gains: torch.Tensor) -> Terms:
        return _terms(name, header, _scaled(name, header, codes, gains))

    weight = read_tensor(base.tensors[header.base or name])
    return Trainable(weight, DTYPES[header.dtype], _terms(name, header, codes), stored)


def with_gains(
    file: BlockFile,
    gains: Mapping[str, torch.Tensor],
    measured: Mapping[str, tuple[Fidelity, ...]],
    delta_of: Callable[[str], torch.Tensor],
) -> dict[str, EncodedTensor]:
    """Return a block's tensors, the deltas of those that have gains at these, in as many bytes.

    Args:
        file: the block without gains.
        gains: by tensor.
        measured: what its codes keep, by tensor; of those that have gains it is measured anew, where it was before.
        delta_of: gives a tensor's delta, float32, (m, n).
    """
    tensors = {}
    for name, header in file.headers.items():
        codes, fidelity = file.codes(name), measured.get(name, ())
        if name in gains:
            codes = _scaled(name, header, codes, gains[name])
            decoded = decode_delta(name, header, codes) if fidelity else None
            fidelity = () if decoded is None else (fidelity_of(delta_of(name), decoded),)
        tensors[name] = EncodedTensor(header, codes, fidelity)
    return tensors


def _terms(name: str, header: TensorHeader, codes: Codes) -> Terms:
    if header.method == KEEP:
        return Terms(decode_half(codes[_DELTA], codes, name).reshape(-1, 1), per_row=True)
    m, n = header.shape
    return METHODS.get(header.method).terms(codes, name, (m, n), header.seed)


def _scaled(name: str, header: TensorHeader, codes: Codes, gains: torch.Tensor) -> Codes:
    if header.method == KEEP:
        return scaled_half(codes, _DELTA, name, gains.reshape(header.shape))
    m, n = header.shape
    return METHODS.get(header.method).scaled(codes, name, (m, n), gains)
