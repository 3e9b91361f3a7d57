"""Row-sparse deltas: an embedding of which few rows changed, as the rows' numbers and values (docs/format.md)."""

import torch

from impart_core.base.errors import CorruptArtifactError
from impart_core.codec.half import EXPONENT_BYTES, decode_half, encode_half
from impart_core.codec.parts import read_part

_NUMBER_BYTES = 4


def rows_bytes(delta: torch.Tensor) -> int:
    """Return the most bytes of the changed rows of a delta (m, n): a 32-bit number and n values of 16 bits each."""
    changed = int(delta.any(dim=1).sum())
    return changed * (_NUMBER_BYTES + 2 * delta.shape[1]) + EXPONENT_BYTES


def encode_rows(delta: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """Return the changed rows of a float32 delta (m, n).

    Returns:
        `rows` int32 (k,), rising; `values` float16 (k, n); `exponent` (see `codec.half`).
    """
    changed = delta.any(dim=1).nonzero().flatten()
    return {"rows": changed.int().cpu(), **encode_half(delta[changed], "values", name)}


def decode_rows(codes: dict[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the delta, float32, of this shape (m, n).

    Raises:
        CorruptArtifactError: rows that the tensor does not have, or out of order, or not as many values as rows.
    """
    rows, values = read_rows(codes, name, shape)
    delta = torch.zeros(shape, dtype=torch.float32)
    delta[rows] = decode_half(values, codes, name)
    return delta


def read_rows(codes: dict[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the numbers of the changed rows, int64, (k,), and their values, (k, n); errors as in `decode_rows`."""
    rows, values = read_part(codes, name, "rows", torch.int32, None).long(), codes["values"]
    ends = torch.cat([torch.tensor([-1]), rows, torch.tensor(shape[:1])])
    if not bool((ends.diff() > 0).all()) or values.shape != (len(rows), *shape[1:]):
        raise CorruptArtifactError(f"The rows stored of {name!r} do not fit its shape {list(shape)}.")
    return rows, values
