"""Decomposing one block: the factors of each of its matrices, as deep as any usual request needs."""

from dataclasses import replace

import torch

from impart_core.base.numerics import one_thread_per_kernel
from impart_core.blocks.coding import depth_of_pair
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.layout import Block
from impart_core.checkpoint.pairing import Pair, Pairs
from impart_core.delta.factors import Factors
from impart_core.delta.load import Digests, load_block
from impart_core.delta.svd import decompose

_CPU = torch.device("cpu")


def decompose_block(
    pairs: Pairs,
    block: Block,
    config: CompressConfig,
    *,
    device: torch.device = _CPU,
    digests: tuple[Digests, Digests] = ({}, {}),
) -> dict[str, Factors]:
    """Decompose every matrix of a block that the request's methods want decomposed and whose delta is not zero.

    That an embedding may be kept instead plays no part: it depends on the ratio, which these are to be shared by.

    Args:
        pairs: the tensors' pairs by name.
        block: which of them to work on.
        config: the request, for how deep.
        device: where the decompositions run.
        digests: the tensors' digests in the base and in the fine-tuned checkpoint; those given are checked.

    Returns:
        Factors on the CPU, vectors in float16, by the matrices' names.

    Raises:
        TensorValueError: a tensor holds NaN or infinity, or cannot be decomposed.
        CheckpointError: a tensor's content is not what its digest says.
    """
    wanted = Block(block.name, tuple(name for name in block.tensors if depth_of_pair(pairs[name], config)))
    found: dict[str, Factors] = {}
    with one_thread_per_kernel():
        for loaded in load_block(pairs, wanted, digests):
            delta, pair = loaded.delta(), loaded.pair
            del loaded  # the checkpoints' own values
            if bool(delta.any()):
                found[pair.name] = factors_of(delta.to(device), pair, config)
    return found


def factors_of(delta: torch.Tensor, pair: Pair, config: CompressConfig) -> Factors:
    """Return the factors of one matrix's delta (m, n) on the CPU, as they are stored: vectors in float16.

    float16 is what every method keeps of them, so that nothing is lost by it.
    """
    depth = depth_of_pair(pair, config)
    assert depth is not None
    m, n = pair.shape
    factors = decompose(delta, pair.name, depth.needed(m, n))
    return replace(factors, u=factors.u.half().cpu(), sigma=factors.sigma.cpu(), v=factors.v.half().cpu())
