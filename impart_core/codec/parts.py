"""The parts that a tensor's codes are stored in, and reading one as what a stranger may have written."""

import torch

from impart_core.base.errors import CorruptArtifactError

Codes = dict[str, torch.Tensor]
_FLOAT_BYTES = 4
_ALWAYS_DECODED = 1 << 28  # bytes: any machine has as many
_MOST_TIMES = 1 << 13  # 4,096 times smaller than 16 bits


def nbytes(codes: Codes) -> int:
    """Return the bytes of all parts."""
    return sum(code.numel() * code.element_size() for code in codes.values())


def require_proportion(codes: Codes, name: str, entries: int) -> None:
    """Refuse codes that would decode to far more than they store, before memory is taken for it.

    Where nothing is stored nothing is written either: such zeros take no memory.

    Raises:
        CorruptArtifactError: they would.
    """
    stored, decoded = nbytes(codes), _FLOAT_BYTES * entries
    if stored and decoded > max(_ALWAYS_DECODED, _MOST_TIMES * stored):
        raise CorruptArtifactError(
            f"The {stored:,} bytes stored of {name!r} would decode to {decoded:,}, more than any compression stores "
            "in so few. They were not decoded."
        )


def read_part(codes: Codes, name: str, part: str, dtype: torch.dtype, *shape: int | None) -> torch.Tensor:
    """Return one part of a tensor's codes, having checked what a damaged file may get wrong.

    Args:
        codes: the codes by part.
        name: the tensor, for the error.
        part: which of them.
        dtype: its dtype.
        shape: its shape; None for a side of any length.

    Raises:
        CorruptArtifactError: the part is missing, or is another tensor than it should be.
    """
    if part not in codes:
        raise CorruptArtifactError(f"The codes of {name!r} have no part {part!r}.")
    found = codes[part]
    sides = zip(found.shape, shape, strict=False)
    if found.dtype != dtype or found.dim() != len(shape) or any(want not in (None, side) for side, want in sides):
        raise CorruptArtifactError(
            f"Part {part!r} of the codes of {name!r} is {found.dtype} of shape {list(found.shape)}; expected "
            f"{dtype} of shape {['any' if side is None else side for side in shape]}."
        )
    return found
