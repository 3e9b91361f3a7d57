"""Lossless codes: bytes and speed beside zstd of the raw bytes, planes of an XOR, and ZipNN where it is installed."""

import importlib.util
import math
from collections.abc import Callable, Iterator
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
import torch
import zstandard

import impart_core as impart
from impart_core import tinyzoo
from impart_core.base.numerics import one_thread_per_kernel
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.reader import read_tensor
from impart_core.codec.exact import bits_of, decode_exact, encode_exact, encode_residual
from impart_core.codec.format import EXACT
from impart_core.codec.parts import nbytes
from impart_core.codec.planes import decode_planes, encode_planes
from impart_core.methods.terms import Terms

ENTRIES = 1 << 24  # of the tensors whose time is taken
REPEATS = 3
RATIOS = (16, 64)  # of the lossy deltas that residuals are stored to
PAIRS = 48  # of vectors
SHARES = (0.01, 0.067, 0.3)  # of the entries, where not all changed
Pair = tuple[torch.Tensor, torch.Tensor]  # of the base and of the fine-tune
Coded = tuple[int, Callable[[], object]]  # bytes, and what decodes


def measure_lossless() -> dict[str, Any]:
    """Return ratios and speeds by way.

    `lossless_ratio`: bytes of each of the tiny zoo's fine-tunes over those of its tensors' codes, by way and task.
    `lossless_gbps`: gigabytes of weights coded and decoded a second of one core's time, by way, on tensors of 2²⁴
    entries: in bfloat16 and float32, all of whose entries changed, and in bfloat16, of which a share did.
    `residual_bytes`: by task and ratio, bytes of an `ecsq` delta on disk (`lossy`), of the residual to it (`residual`),
    of both over those of a lossless delta alone (`both_over_alone`), and of the residual alone (`residual_over_alone`).
    `residual_gbps`: likewise of the residual to a tensor that is at hand, and of what rebuilds it: a product of 48
    vector pairs in the same bits everywhere (`portable`), and in float32 as the library sums (`product`).
    """
    with one_thread_per_kernel():
        ratios = {way: {task: _ratio(code, _zoo(task)) for task in tinyzoo.FINE_TUNES} for way, code in _ways().items()}
        speeds = {way: {name: _speed(code, pair) for name, pair in _large().items()} for way, code in _ways().items()}
        residual_speeds = _residual_speeds()
    residuals = {task: _residuals(task) for task in tinyzoo.FINE_TUNES}
    figures = {"residual_bytes": residuals, "residual_gbps": residual_speeds}
    return {"lossless_ratio": ratios, "lossless_gbps": speeds, **figures}


def _ways() -> dict[str, Callable[[Pair], Coded]]:
    zipnn = {"zipnn": _zipnn} if importlib.util.find_spec("zipnn") else {}
    return {"ours": _ours, "xor planes": _xor, "zstd": _zstd, **zipnn}


def _ours(pair: Pair) -> Coded:
    base, value = pair
    way, codes = encode_exact(value, base)
    shape, dtype = tuple(value.shape), value.dtype
    reference = None if way == "planes" else base
    return nbytes(codes), lambda: way in EXACT and decode_exact(way, codes, "", shape, reference, dtype)


def _xor(pair: Pair) -> Coded:
    base, value = map(bits_of, pair)
    codes = encode_planes(lambda start, stop: base[start:stop] ^ value[start:stop], len(base))
    return nbytes(codes), lambda: [part.sum() for part in decode_planes(codes, "", len(base), base.itemsize)]


def _zstd(pair: Pair) -> Coded:
    frame = zstandard.ZstdCompressor(level=3).compress(memoryview(bits_of(pair[1]).view(np.uint8)))
    return len(frame), lambda: zstandard.ZstdDecompressor().decompress(frame)


def _zipnn(pair: Pair) -> Coded:
    from zipnn import ZipNN  # type: ignore[import-not-found]

    kinds = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float16: "float16"}
    coder = ZipNN(input_format="byte", bytearray_dtype=kinds[pair[1].dtype], threads=1)
    found = coder.compress(bytearray(bits_of(pair[1]).tobytes()))
    return len(found), lambda: coder.decompress(found)


def _zoo(task: str) -> Iterator[Pair]:
    base, finetuned = (open_checkpoint(str(tinyzoo.path(name))) for name in ("base", task))
    for name, info in finetuned.tensors.items():
        yield read_tensor(base.tensors[name]), read_tensor(info)


def _large() -> dict[str, Pair]:
    """Return tensors as a fine-tune changes them."""
    generator = torch.Generator().manual_seed(0)
    base, step = (scale * torch.randn(ENTRIES, generator=generator) for scale in (0.02, 1e-4))
    draws = torch.rand(ENTRIES, generator=generator)
    return {
        "bf16": (base.bfloat16(), (base.bfloat16() + step).bfloat16()),
        "f32": (base, base + step),
        **{f"bf16, {share:.0%} changed": (base.bfloat16(), _some(base, step, draws < share)) for share in SHARES},
    }


def _some(base: torch.Tensor, step: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
    return (base.bfloat16() + changed * (step + 1e-3)).bfloat16()


def _residuals(task: str) -> dict[str, dict[str, float]]:
    """Return what a store takes of one fine-tune."""
    sides, found = (tinyzoo.path("base"), tinyzoo.path(task)), {}
    with TemporaryDirectory() as folder:
        alone = impart.compress(*sides, method="lossless", store=folder).bytes
        for cr in RATIOS:
            lossy = impart.compress(*sides, cr, method="ecsq", store=folder)
            both = impart.compress(*sides, method="lossless", over=lossy, store=folder).bytes
            residual = both - lossy.bytes
            found[f"CR {cr}"] = {
                "lossy": lossy.bytes,
                "residual": residual,
                "both_over_alone": round(both / alone, 4),
                "residual_over_alone": round(residual / alone, 4),
            }
    return found


def _residual_speeds() -> dict[str, float]:
    """Return gigabytes a second of a bfloat16 matrix whose lossy delta misses half of what changed."""
    base, value = _large()["bf16"]
    generator = torch.Generator().manual_seed(1)
    lossy = (base.float() + 0.5 * (value.float() - base.float())).bfloat16()
    coding, (way, codes) = _quickest(lambda: encode_residual(value, lossy, base))
    shape, dtype = tuple(value.shape), value.dtype
    decoding, _ = _quickest(lambda: decode_exact(way, codes, "", shape, lossy, dtype))
    left, right = (torch.randn(PAIRS, math.isqrt(ENTRIES), generator=generator) for _ in range(2))
    portable, _ = _quickest(Terms(right, left).portable)
    product, _ = _quickest(lambda: left.T @ right)
    seconds = {"code": coding, "decode": decoding, "portable": portable, "product": product}
    return {name: round(value.nbytes / 1e9 / taken, 2) for name, taken in seconds.items()}


def _ratio(code: Callable[[Pair], Coded], pairs: Iterator[Pair]) -> float:
    found = [(value.nbytes, code((base, value))[0]) for base, value in pairs]
    return round(sum(size for size, _ in found) / sum(coded for _, coded in found), 3)


def _speed(code: Callable[[Pair], Coded], pair: Pair) -> dict[str, float]:
    gigabytes = pair[1].nbytes / 1e9
    coding, (size, decode) = _quickest(lambda: code(pair))
    decoding, _ = _quickest(decode)
    found = {"ratio": pair[1].nbytes / size, "code": gigabytes / coding, "decode": gigabytes / decoding}
    return {name: round(value, 2) for name, value in found.items()}


def _quickest(work: Callable[[], Any]) -> tuple[float, Any]:
    best, result = float("inf"), None
    for _ in range(REPEATS):
        began = process_time()
        result = work()
        best = min(best, process_time() - began)
    return best, result
