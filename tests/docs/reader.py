"""A second reader of compressed deltas, written from docs/format.md alone.

It uses numpy, json, zstandard and hashlib, and nothing of ImPart. `§` in a docstring is a section of that page.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

WIDTHS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
WIDTHS |= {"U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}
METHODS = ("impart", "dare", "lowrank", "magnitude", "bitdelta", "impart-qt", "delta-come", "dare-qt", "ecsq")
Parts = Mapping[str, Any]


# §1 The block file


def read_block(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the headers and the parts of every tensor of a block file, by name."""
    entries, data = _opened(path)
    if set(entries) == {"b"}:
        return _read_packed(data)
    described = json.loads(entries.pop("__metadata__")["impart"])
    assert described["format"] in (1, 2)
    headers, arrays = described["tensors"], read_entries(path)
    keys = {name: {part: f"{name}:{part}" for part in header.get("parts", ())} for name, header in headers.items()}
    assert {key for own in keys.values() for key in own.values()} == set(arrays)
    return headers, {name: {part: arrays[key] for part, key in own.items()} for name, own in keys.items()}


def _read_packed(data: bytes) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    rest = iter(data)
    size, length = _number(rest), _number(rest)
    at = len(data) - len(bytes(rest))
    shared = zstandard.ZstdCompressionDict(dictionary(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    reading = zstandard.ZstdDecompressor(dict_data=shared, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    described, at = json.loads(reading.decompress(data[at : at + length], max_output_size=size)), at + length
    assert described["format"] == 3
    headers, parts = described["tensors"], dict[str, dict[str, Any]]()
    for name in sorted(headers):
        parts[name] = {}
        for part, (dtype, shape) in sorted(headers[name]["parts"].items()):
            width = 2 if dtype == "BF16" else np.dtype(WIDTHS[dtype]).itemsize
            end = at + width * int(np.prod(shape))
            parts[name][part], at = _array(data[at:end], dtype, shape), end
    assert at == len(data)
    return headers, parts


def dictionary() -> bytes:
    """Return the text that descriptions are compressed against: the lines of the page, joined."""
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    return page.partition("<!-- dictionary -->\n```\n")[2].partition("\n```")[0].replace("\n", "").encode("ascii")


def read_entries(path: Path) -> dict[str, Any]:
    """Return the arrays of any safetensors file by key, in the order of its header."""
    entries, data = _opened(path)
    entries.pop("__metadata__", None)
    return {key: _array(data[slice(*e["data_offsets"])], e["dtype"], e["shape"]) for key, e in entries.items()}


def _opened(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _array(data: bytes, dtype: str, shape: list[int]) -> Any:
    if dtype == "BF16":  # the upper half of a float32
        wide = np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)
        return wide.view("<f4").reshape(shape)
    return np.frombuffer(data, WIDTHS[dtype]).reshape(shape)


# §2 What is stored of a tensor


def deltas_of(name: str, header: Mapping[str, Any], parts: Parts) -> Iterator[Any]:
    """Give the delta of a tensor, or of each matrix of a stack: float32, None where it is zero or has none."""
    shape = list(header["shape"])
    if len(shape) == 3 and header["method"] in METHODS:
        for index in range(shape[0]):
            own = {p.partition(".")[2]: code for p, code in parts.items() if p.partition(".")[0] == str(index)}
            yield _delta(f"{name}[{index}]", header, shape[1:], own) if own else None
        return
    if "added" in parts:
        shape[0] -= len(parts["added"])
    yield _delta(name, header, shape, parts)


def _delta(name: str, header: Mapping[str, Any], shape: list[int], parts: Parts) -> Any:
    match header["method"]:
        case "omitted" | "value" | "planes" | "difference" | "sparse" | "residual":
            return None
        case "keep":
            return _scaled(parts["delta"], parts).reshape(shape)
        case "rows":
            delta = np.zeros(shape, np.float32)
            delta[parts["rows"]] = _scaled(parts["values"], parts)
            return delta
        case method:
            return DECODERS[method](parts, shape[0], shape[1], name, header.get("seed", 0))


def _scaled(values: Any, parts: Parts) -> Any:
    return values.astype(np.float32) * np.float32(2.0 ** int(parts["exponent"][0]) if "exponent" in parts else 1)


# §3 Bit packing


def unpack(data: bytes, width: int, count: int) -> Any:
    """Return `count` codes of `width` bits, uint64."""
    assert len(data) == -(-count * width // 8)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width, bitorder="little")
    places = np.uint64(1) << np.arange(width, dtype=np.uint64)
    return (bits.reshape(count, width).astype(np.uint64) * places).sum(axis=1, dtype=np.uint64)


# §4 Masks


def mask_key(seed: int, tensor: str, role: str) -> int:
    """Return the 128-bit key of a mask."""
    text = json.dumps([seed, tensor, role], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:16], "little")


def philox(key: int, counter: int) -> list[int]:
    """Return the four 64-bit outputs of Philox4x64-10, from its definition."""
    low, keys = (1 << 64) - 1, [key & ((1 << 64) - 1), key >> 64]
    x = [counter >> 64 * i & low for i in range(4)]
    for _ in range(10):
        left, right = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
        x = [right >> 64 ^ x[1] ^ keys[0], right & low, left >> 64 ^ x[3] ^ keys[1], left & low]
        keys = [keys[0] + 0x9E3779B97F4A7C15 & low, keys[1] + 0xBB67AE8584CAA73B & low]
    return x


def words(key: int, lines: int, length: int) -> Any:
    """Return the words of a mask, uint32, (lines, length)."""
    blocks = -(-length // 8)
    raw = np.random.Philox(key=key, counter=0).random_raw(4 * blocks * lines)  # block b is that of counter b + 1
    return np.asarray(raw, "<u8").view("<u4").reshape(lines, 8 * blocks)[:, :length]


def mask(seed: int, tensor: str, role: str, codes: Any, length: int, sharing: int = 1) -> Any:
    """Return which entries are kept, bool, (lines, length), by the keep code of each line; so many share words."""
    threshold = (codes.astype(np.uint64) + 1) << np.uint64(16)
    own = words(mask_key(seed, tensor, role), -(-len(codes) // sharing), length)
    return own[np.arange(len(codes)) // sharing] < threshold[:, None]


def _delta_mask(parts: Parts, m: int, n: int, name: str, seed: int) -> Any:
    return mask(seed, name, "delta", np.repeat(parts["keep"], m), n) if len(parts["keep"]) else None


def _probability(codes: Any) -> Any:
    return (codes.astype(np.float64) + 1) / 65536


# §5 Positions


def positions(parts: Parts, count: int) -> Any:
    """Return the rising positions of Golomb–Rice coded gaps."""
    width = int(parts["width"][0])
    ones = np.flatnonzero(np.unpackbits(parts["quotients"], bitorder="little"))
    assert len(ones) == count
    quotients = np.diff(ones, prepend=-1) - 1
    rest = unpack(parts["remainders"].tobytes(), width, count) if width else np.zeros(count)
    return np.cumsum((quotients << width) + rest.astype(np.int64) + 1) - 1


# §6a Tensors bit for bit


def exact_bits(method: str, parts: Parts, dtype: str, reference: Any) -> Any:
    """Return the bits of a tensor, (n,), from those of what it is compared with, or from as many zeros."""
    bits = reference.copy()
    if method == "residual" and not parts:
        return bits
    where = slice(None)
    if "quotients" in parts:
        where = positions(parts, int(np.unpackbits(parts["quotients"]).sum()))
    found = _integers(parts, len(bits[where]), bits.itemsize)
    if method == "planes":
        return found
    size, top, every = 8 * bits.itemsize, 1 << (8 * bits.itemsize - 1), (1 << (8 * bits.itemsize)) - 1
    floating = dtype.startswith(("F", "BF"))
    moved = []
    for folded, ours in zip(found.tolist(), bits[where].tolist(), strict=True):
        key = ours if not floating else every - ours if ours >> (size - 1) else ours + top
        key = (key + (folded >> 1 if folded % 2 == 0 else -(folded >> 1) - 1)) % (1 << size)
        moved.append(key if not floating else key - top if key >> (size - 1) else every - key)
    bits[where] = np.array(moved, dtype=bits.dtype)
    return bits


def _integers(parts: Parts, count: int, width: int) -> Any:
    """Return integers from byte planes."""
    lengths, rotation, at, found = parts["lengths"].tolist(), int(parts["rotation"][0]), 0, []
    for chunk in range(-(-count // 2**17)):
        size = min(2**17, count - chunk * 2**17)
        total = np.zeros(size, dtype=np.uint64)
        for plane in range(width):
            data = parts["planes"][at : (at := at + lengths[chunk * width + plane])].tobytes()
            data = zstandard.decompress(data) if len(data) not in (0, size) else data or bytes(size)
            total |= np.frombuffer(data, np.uint8).astype(np.uint64) << np.uint64(8 * plane)
        bits = 8 * width
        rotated = [(x << rotation | x >> (bits - rotation)) & ((1 << bits) - 1) for x in total.tolist()]
        found.append(np.array(rotated, dtype=f"<u{width}"))
    assert at == len(parts["planes"])
    return np.concatenate(found)


# §6 Quantised streams


def streams(parts: Parts, masks: list[Any]) -> list[Any]:
    """Return the matrices of quantised streams, float32, each like its mask."""
    size, lossless, *pairs = (int(number) for number in parts["layout"])
    ranges = list(zip(pairs[::2], pairs[1::2], strict=True))
    codes, zeros, scales = parts["codes"].tobytes(), parts["zeros"].tobytes(), parts["scales"]
    matrices, stream, total = [], 0, 0
    for kept in masks:
        matrix, row = np.zeros(kept.shape, np.float32), 0
        for bits, rows in ranges:
            own = slice(row, row + rows)
            count = int(kept[own].sum())
            plain = -(-count * bits // 8)
            form, length = (int(parts[p][stream]) for p in ("forms", "lengths")) if lossless else (0, plain)
            found = _stream(codes[:length], form, bits, count)
            codes, row, stream, total = codes[length:], row + rows, stream + 1, total + plain
            if bits == 16:
                matrix[own][kept[own]] = found.astype("<u2").view("<f2")
                continue
            groups = -(-count // (size or count)) if count else 0
            point = unpack(zeros[: -(-groups * bits // 8)], bits, groups).astype(np.int64)
            group = np.arange(count) // (size or max(count, 1))
            zero, scale = point[group], scales[:groups].astype(np.float32)[group]
            zeros, scales = zeros[-(-groups * bits // 8) :], scales[groups:]
            code = (found.astype(np.int64) + zero) % (1 << bits) if lossless else found.astype(np.int64)
            matrix[own][kept[own]] = (code - zero).astype(np.float32) * scale
        assert row == len(kept)
        matrices.append(matrix)
    assert not len(codes) and not len(zeros) and not len(scales)
    assert not lossless or parts["packed"].tolist() == [total]
    return matrices


def _stream(data: bytes, form: int, bits: int, count: int) -> Any:
    if form == 0:
        return unpack(data, bits, count)
    size = count if form == 2 else -(-count * bits // 8)
    plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    assert len(plain) == size
    return np.frombuffer(plain, np.uint8) if form == 2 else unpack(plain, bits, count)


# §7 Methods


def _impart(parts: Parts, m: int, n: int, name: str, seed: int) -> Any:
    sides = {}
    for role, length in (("u", m), ("v", n)):
        kept = mask(seed, name, role, parts["keep"], length)
        vectors = np.zeros(kept.shape, np.float32)
        vectors[kept] = parts[role]
        sides[role] = vectors * (1 / _probability(parts["keep"])).astype(np.float32)[:, None]
    return (sides["u"] * parts["sigma"][:, None]).T @ sides["v"]


def _dare(parts: Parts, m: int, n: int, name: str, seed: int) -> Any:
    delta, kept = np.zeros((m, n), np.float32), _delta_mask(parts, m, n, name, seed)
    if kept is not None:
        delta[kept] = _scaled(parts["values"], parts) / np.float32(_probability(parts["keep"])[0])
    return delta


def _lowrank(parts: Parts, *_: Any) -> Any:
    return (parts["u"].astype(np.float32) * parts["sigma"][:, None]).T @ parts["v"].astype(np.float32)


def _magnitude(parts: Parts, m: int, n: int, *_: Any) -> Any:
    delta = np.zeros(m * n, np.float32)
    delta[positions(parts, len(parts["values"]))] = _scaled(parts["values"], parts)
    return delta.reshape(m, n)


def _bitdelta(parts: Parts, m: int, n: int, name: str, seed: int) -> Any:
    delta, kept = np.zeros((m, n), np.float32), _delta_mask(parts, m, n, name, seed)
    if len(parts["scales"]):
        kept = np.ones((m, n), bool) if kept is None else kept
        signs = unpack(parts["signs"].tobytes(), 1, int(kept.sum()))
        delta[kept] = np.where(signs, np.float32(1), np.float32(-1))
        delta *= parts["scales"][:, None]
    return delta


def _impart_qt(parts: Parts, m: int, n: int, name: str, seed: int) -> Any:
    part = next(part for part in ("keep_shared_v", "keep_shared_u", "keep") if part in parts)
    keep = parts[part].astype(np.int64) * 256 + 255
    sharing = {role: 64 if part == f"keep_shared_{role}" else 1 for role in "uv"}
    masks = [mask(seed, name, role, keep, length, sharing[role]) for role, length in (("u", m), ("v", n))]
    u, v = streams(parts, masks)
    weights = (parts["sigma"].astype(np.float64) / _probability(keep) ** 2).astype(np.float32)
    return (u * weights[:, None]).T @ v


def _delta_come(parts: Parts, m: int, n: int, *_: Any) -> Any:
    count = len(parts["sigma"])
    u, v = streams(parts, [np.ones((count, m), bool), np.ones((count, n), bool)])
    return (u * parts["sigma"][:, None]).T @ v


def _dare_qt(parts: Parts, m: int, n: int, name: str, seed: int) -> Any:
    kept = _delta_mask(parts, m, n, name, seed)
    (values,) = streams(parts, [np.zeros((m, n), bool) if kept is None else kept])
    values = _scaled(values, parts)
    return values if kept is None else values / np.float32(_probability(parts["keep"])[0])


def _ecsq(parts: Parts, m: int, n: int, *_: Any) -> Any:
    stored = bytes(parts["symbols"].tolist())
    data = iter(stored)
    runs, entries = divmod(_number(data), 2)
    if not runs:
        return np.zeros((m, n), np.float32)
    check, rest = next(data), bytes(data)
    assert check == zlib.crc32(f"{m},{n},".encode() + rest) % 256
    data = iter(rest)
    exponent = next(data) - 128
    unit = m * n if entries else m + n
    tables = [_table(data, unit) for _ in range(runs)]
    count = sum(total for _, total in tables) // unit
    codes = np.array([next(data) for _ in range(count)])
    roots = np.float32(2.0 ** (-(codes % 16) / 16))
    scales = np.ldexp(roots, exponent - codes // 16).astype(np.float32)
    symbols = np.array(_range_decoded(bytes(data), tables), np.float32)
    if entries:
        return symbols.reshape(m, n) * scales
    u, v = np.split(symbols.reshape(count, m + n), [m], axis=1)
    return (u * scales[:, None]).T @ v


def _number(data: Iterator[int]) -> int:
    value = shift = 0
    while (byte := next(data)) >= 128:
        value, shift = value + ((byte - 128) << shift), shift + 7
    return value + (byte << shift)


LARGER = (720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768, 40793, 47911, 53581, 57724, 60565, 62428)


def _table(data: Iterator[int], unit: int) -> tuple[list[int], int]:
    """Return the weight of each magnitude, and how many symbols the run has."""
    most, multiple = divmod(next(data), 16)
    if most:
        multiple += 1 + (_number(data) if multiple == 15 else 0)
        codes = [half for _ in range((most + 1) // 2) for half in divmod(next(data), 16)[::-1]][:most]
        weights, rest = [], 2**40
        for code in codes:
            larger = rest * LARGER[code] // 2**16
            weights.append(max(1, rest - larger))
            rest = larger
        return [*weights, max(1, rest)], multiple * unit
    largest, counts = _number(data), list[int]()
    while len(counts) <= largest:
        counts.append(_number(data))
        if counts[-1] == 0:
            counts += [0] * _number(data)
    return counts, sum(counts)


def _range_decoded(data: bytes, tables: list[tuple[list[int], int]]) -> list[int]:
    words = np.frombuffer(data + bytes(-len(data) % 4 + 8), ">u4").tolist()
    point, at = words[0] << 32 | words[1], 2
    low, width, found, all_bits = 0, (1 << 64) - 1, list[int](), (1 << 64) - 1
    for counts, number_of_symbols in tables:
        total, values = sum(counts), [s for s in range(1 - len(counts), len(counts)) if counts[abs(s)]]
        free = (1 << 20) - len(values)
        shares = [1 + free * counts[abs(s)] * (1 if s else 2) // (2 * total) for s in values]
        shares[shares.index(max(shares))] += (1 << 20) - sum(shares)
        ends = np.cumsum([0, *shares]).tolist()
        left = [end * ((1 << 24) - len(values)) // (1 << 20) + number for number, end in enumerate(ends)]
        for _ in range(number_of_symbols):
            unit = width >> 24
            place = ((point - low) & all_bits) // unit
            number = next(number for number in range(len(values)) if place < left[number + 1])
            found.append(values[number])
            low = (low + unit * left[number]) & all_bits
            width = unit * (left[number + 1] - left[number])
            if width < 1 << 32:
                low, width = (low << 32) & all_bits, width << 32
                point = (point << 32) & all_bits | (words[at] if at < len(words) else 0)
                at += 1
    return found


_ALL = (_impart, _dare, _lowrank, _magnitude, _bitdelta, _impart_qt, _delta_come, _dare_qt, _ecsq)
DECODERS = dict(zip(METHODS, _ALL, strict=True))


# §9 and §10 Artifacts and ids


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def read_manifest(store: Path, artifact: str) -> dict[str, Any]:
    """Return an artifact's manifest, having checked its id, its seal, and each file's size and digest."""
    data = (store / "artifacts" / artifact / "manifest.json").read_bytes()
    manifest: dict[str, Any] = json.loads(data)
    assert canonical(manifest) == data
    assert manifest["id"] == artifact == digest(manifest["recipe"])
    assert manifest["seal"] == digest({key: value for key, value in manifest.items() if key != "seal"})
    for entry in manifest["files"]:
        content = (store / "artifacts" / artifact / entry["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["size"], entry["sha256"])
        stem, dot, suffix = entry["name"].rpartition(".")
        short = entry["sha256"][:16]
        assert entry["path"] == (f"{stem}.{short}.{suffix}" if dot and stem else f"{entry['name']}.{short}")
    return manifest


def tensor_digests(path: Path) -> dict[str, str]:
    """Return the digest of every tensor of a safetensors file by name."""
    entries, data = _opened(path)
    entries.pop("__metadata__", None)
    texts = {name: f"{entry['dtype']}{entry['shape']}".encode("ascii") for name, entry in entries.items()}
    spans = {name: slice(*entry["data_offsets"]) for name, entry in entries.items()}
    return {name: hashlib.sha256(text + data[spans[name]]).hexdigest() for name, text in texts.items()}
