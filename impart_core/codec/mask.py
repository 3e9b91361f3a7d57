"""Masks that cost no bytes: regenerated from a key and integer thresholds (docs/format.md).

An entry (row i, column k) is kept when its 32-bit Philox word is below the threshold of column k. Column k
owns a whole number of Philox blocks, so its words depend on nothing but the key, k and the row count.
Columns may share words, so many of them one line: their masks are then nested, and equal where thresholds are.
"""

import hashlib
import json
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

UInt16Array = npt.NDArray[np.uint16]
UInt32Array = npt.NDArray[np.uint32]
BoolArray = npt.NDArray[np.bool_]

_WORDS_PER_BLOCK = 8  # one Philox4x64 block: four 64-bit outputs, read as eight 32-bit words
_CHUNK_BYTES = 4 << 20  # of words at once; their upper halves, and numpy's copies when counting, come on top
LEVELS = 1 << 16  # keep probabilities are stored in steps of 1/65536


def mask_key(seed: int, tensor: str, role: str) -> int:
    """Return the 128-bit Philox key of one factor of one tensor, independent of all others.

    Args:
        seed: the request's seed.
        tensor: the tensor's full name.
        role: which part of the tensor's codes the mask is for ("u", "v", "delta").
    """
    text = json.dumps([seed, tensor, role], separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def mask_words(key: int, rows: int, columns: int, first: int = 0) -> UInt32Array:
    """Return the raw words of `columns` columns from column `first` on, shape (columns, rows): one line for each.

    A column's line is the same in every call that it is part of.
    """
    blocks = -(-rows // _WORDS_PER_BLOCK)
    raw = np.random.Philox(key=key, counter=first * blocks).random_raw(columns * blocks * 4)
    words = np.asarray(raw, dtype="<u8").view("<u4").reshape(columns, blocks * _WORDS_PER_BLOCK)
    return words[:, :rows]


def keep_codes(probability: npt.NDArray[np.float64]) -> UInt16Array:
    """Round keep probabilities in (0, 1] to the codes that are stored: code c stands for (c + 1) / 65536."""
    codes: UInt16Array = np.clip(np.rint(probability * LEVELS) - 1, 0, LEVELS - 1).astype(np.uint16)
    return codes


def keep_probability(codes: UInt16Array) -> npt.NDArray[np.float64]:
    """Return the exact keep probability that each stored code stands for, float64, shape (columns,)."""
    return (codes.astype(np.float64) + 1.0) / LEVELS


def may_keep(count: int, rows: int, codes: UInt16Array) -> bool:
    """Return whether a mask of (columns, rows) may keep so many entries, without making it.

    A number that is 12 standard deviations and more away from the mean is not that of any mask (Bernstein); so a mask
    that a damaged shape makes far too large is noticed before it takes memory or time.
    """
    mean = rows * float(keep_probability(codes).sum())
    return abs(count - mean) <= 12 * math.sqrt(mean) + 64


def most_kept(entries: int, code: UInt16Array) -> int:
    """Return a number of kept entries that not one mask in ten million goes beyond (Bernstein).

    Args:
        entries: of the whole mask.
        code: the keep code of all of them, (1,).
    """
    mean = entries * float(keep_probability(code)[0])
    return min(entries, math.ceil(mean + 6 * math.sqrt(mean) + 12))


def mask_from_words(words: UInt32Array, codes: UInt16Array) -> BoolArray:
    """Return the kept entries, shape (columns, rows): word < (code + 1)·2¹⁶, in integers."""
    return mask_from_levels(word_levels(words), codes)


def word_levels(words: UInt32Array) -> UInt16Array:
    """Return the upper halves of the words: all that thresholds in steps of 2¹⁶ can tell apart."""
    return (words >> np.uint32(16)).astype(np.uint16)


def mask_from_levels(levels: UInt16Array, codes: UInt16Array, sharing: int = 1) -> BoolArray:
    """Return the kept entries, (columns, rows): word < (c + 1)·2¹⁶ is the same as level ≤ c.

    Args:
        levels: upper halves of the words, (⌈columns/sharing⌉, rows).
        codes: keep codes, (columns,).
        sharing: how many columns that follow each other take one line of words.
    """
    own = levels if sharing == 1 else levels.repeat(sharing, axis=0)[: len(codes)]
    return own <= codes[:, None]


def kept_by_step(key: int, rows: int, columns: int, steps: int) -> npt.NDArray[np.int64]:
    """Return how many entries of each column are kept by each of so many keep codes, (columns, steps).

    Args:
        key: the mask's key.
        rows: entries of each column.
        columns: how many columns.
        steps: a power of two from 2 to `LEVELS`: those keep codes are counted that stand for 1/steps, 2/steps, …, 1.
    """
    counts = np.empty((columns, steps), dtype=np.int64)
    for lines, levels in level_chunks(key, rows, columns):
        first = steps * np.arange(len(levels))[:, None]
        found = np.bincount((levels // (LEVELS // steps) + first).ravel(), minlength=steps * len(levels))
        counts[lines] = found.reshape(-1, steps).cumsum(axis=1)
    return counts


def level_chunks(key: int, rows: int, columns: int, first: int = 0) -> Iterator[tuple[slice, UInt16Array]]:
    """Yield the upper halves of a mask's words a few columns at a time, to bound memory for masks of any size.

    Args:
        key: the mask's key.
        rows: entries of each column.
        columns: how many columns.
        first: the column that they begin with.

    Yields:
        Which of the columns, counted from the first, and their levels, (columns of the chunk, rows).
    """
    step = max(1, _CHUNK_BYTES // max(1, -(-rows // _WORDS_PER_BLOCK) * _WORDS_PER_BLOCK * 4))
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        yield slice(start, stop), word_levels(mask_words(key, rows, stop - start, first + start))


def level_pieces(key: int, rows: int, columns: int, first: int = 0) -> Iterator[tuple[slice, UInt16Array]]:
    """Yield the upper halves of a mask's words in little memory, however long a column is.

    Args:
        key: the mask's key.
        rows: entries of each column.
        columns: how many columns.
        first: the column that they begin with.

    Yields:
        Which of the columns, counted from the first, and their levels, (columns of the piece, entries): several whole
        columns, or a part of one.
    """
    blocks, most = -(-rows // _WORDS_PER_BLOCK), _CHUNK_BYTES // (4 * _WORDS_PER_BLOCK)
    if blocks <= most:
        yield from level_chunks(key, rows, columns, first)
        return
    for column in range(columns):
        for block in range(0, blocks, most):  # the blocks of a piece of one column, as if they were columns
            words = mask_words(key, _WORDS_PER_BLOCK, min(most, blocks - block), (first + column) * blocks + block)
            piece = word_levels(words).reshape(1, -1)[:, : rows - block * _WORDS_PER_BLOCK]
            yield slice(column, column + 1), piece


def count_kept(key: int, rows: int, columns: int, code: UInt16Array, first: int = 0) -> int:
    """Return how many entries of columns a mask keeps, in little memory however many there are.

    Args:
        key: the mask's key.
        rows: entries of each column.
        columns: how many columns.
        code: the keep code of all of them, (1,).
        first: the column that they begin with.
    """
    pieces = level_pieces(key, rows, columns, first)
    return sum(int(np.count_nonzero(mask_from_levels(levels, code))) for _, levels in pieces)


def kept_of_columns(key: int, rows: int, codes: UInt16Array, sharing: int = 1) -> npt.NDArray[np.int64]:
    """Return how many entries of each column a mask keeps, (columns,), in little memory however long columns are.

    Args:
        key: the mask's key.
        rows: entries of each column.
        codes: the keep code of each column, (columns,).
        sharing: how many columns that follow each other take one line of words.
    """
    kept = np.zeros(len(codes), dtype=np.int64)
    for lines, levels in level_pieces(key, rows, -(-len(codes) // sharing)):
        for place in range(min(sharing, len(codes))):  # of the columns that share a line
            own = codes[place::sharing][lines]
            kept[place::sharing][lines] += np.count_nonzero(mask_from_levels(levels[: len(own)], own), axis=1)
    return kept


def fitting_code(key: int, rows: int, columns: int, room: int) -> UInt16Array:
    """Return the highest keep code with which all columns together keep no more entries than there is room for.

    Args:
        key: the mask's key.
        rows: entries of each column.
        columns: how many columns.
        room: the most entries.

    Returns:
        uint16, (1,); or (0,) when even the lowest code keeps too many.
    """
    counts = np.zeros(LEVELS, dtype=np.int64)
    for _, levels in level_chunks(key, rows, columns):
        counts += np.bincount(levels.ravel(), minlength=LEVELS)
    fitting = int(np.searchsorted(np.cumsum(counts), room, side="right"))
    return np.arange(LEVELS, dtype=np.uint16)[max(0, fitting - 1) : fitting]


def whole_mask(key: int, rows: int, columns: int, code: UInt16Array) -> BoolArray:
    """Return the mask, (columns, rows), that keeps entries of every column by the one code, (1,)."""
    mask = np.empty((columns, rows), dtype=np.bool_)
    for lines, levels in level_chunks(key, rows, columns):
        mask[lines] = mask_from_levels(levels, code)
    return mask
