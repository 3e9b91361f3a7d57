"""Bytes against what the ratio allows, and the speed of decoding against the matrix product that it needs."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from impart_core.base.numerics import one_thread_per_kernel
from impart_core.blocks.coding import depth_of_pair
from impart_core.blocks.decompose import decompose_block
from impart_core.blocks.encode import Encoder
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.layout import Block, Role
from impart_core.checkpoint.pairing import Pairs, pair_tensors
from impart_core.codec.format import EncodedTensor
from impart_core.codec.parts import nbytes
from impart_core.delta.factors import Factors
from impart_core.methods import METHODS
from impart_core.methods.depth import Depth
from tests.bench.synthetic import save_pairs

CR = 32.0
REPEATS = 5
Encoded = dict[str, EncodedTensor]


def measure_codec() -> dict[str, Any]:
    """Return, at CR 32 on one layer's projections: stored bytes over nominal bytes by method, and decoding speed.

    Each method is run as the command runs it, with factors as deep as its request asks for, but without calibration.
    `decode_gbps`: gigabytes of 16-bit weights that are rebuilt a second; `decode_over_product`: the time of the
    matrix product U·Σ·Vᵀ alone, from dense factors at hand, over that of decoding.
    """
    with tempfile.TemporaryDirectory() as scratch, one_thread_per_kernel():
        (folders,) = save_pairs(Path(scratch), (1,)).values()
        base, finetuned = (open_checkpoint(folder) for folder in folders)
        pairs = {name: pair for name, pair in pair_tensors(base, finetuned).items() if pair.role is Role.PROJECTION}
        found = _compressed(pairs)
    nominal = sum(2 * pair.finetuned.numel for pair in pairs.values()) / CR
    stored = {method: sum(nbytes(item.codes) for item in tensors.values()) for method, tensors in found.items()}
    return {"bytes_over_nominal": {method: count / nominal for method, count in stored.items()}} | _decoding(
        found["impart"]
    )


def _compressed(pairs: Pairs) -> dict[str, Encoded]:
    """Return the projections by method; methods share the factors of requests that are as deep."""
    layer, at_hand = Block("layer", tuple(pairs)), dict[tuple[str, Depth | None], Factors]()

    def compress(config: CompressConfig) -> Encoded:
        def factors(name: str) -> Factors:
            key = name, depth_of_pair(pairs[name], config)
            if key not in at_hand:
                at_hand[key] = decompose_block(pairs, Block(name, (name,)), config)[name]
            return at_hand[key]

        return Encoder(config, factors).block(pairs, layer)

    return {method: compress(CompressConfig(method=method, cr=CR)) for method in METHODS}


def _decoding(tensors: Encoded) -> dict[str, float]:
    decoding, product, dense = 0.0, 0.0, 0
    with one_thread_per_kernel():
        for name, item in tensors.items():
            m, n = item.header.shape
            u, v = (torch.randn(len(item.codes["sigma"]), side) for side in (m, n))
            decode = METHODS.get(item.header.method).decode
            decoding += _quickest(partial(decode, item.codes, name, (m, n), item.header.seed))
            product += _quickest(partial(torch.matmul, u.T, v))
            dense += 2 * m * n
    return {"decode_gbps": dense / decoding / 1e9, "decode_over_product": product / decoding}


def _quickest(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        started = perf_counter()
        work()
        best = min(best, perf_counter() - started)
    return best
