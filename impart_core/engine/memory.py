"""Memory of what runs a whole model forward and back: training gains, and measuring sensitivity."""

import math
from collections.abc import Sequence

from impart_core.blocks.coding import calibration_of, is_feasible
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.layer import BATCH_TOKENS
from impart_core.calibrate.logits import LIKELIEST
from impart_core.calibrate.text import LENGTH, SEQUENCES
from impart_core.checkpoint.layout import Block, Role
from impart_core.checkpoint.pairing import VOCABULARY, Pair, Pairs
from impart_core.methods import METHODS

# While gains are trained: float32 values for each token of a batch, for what a layer's matrices are given and give, and
# for each token of the vocabulary; and those for each entry that a bit may stand for, its position included.
_KEPT_FOR_THE_WAY_BACK, _OF_LOGITS, _MOST_HELD = 3, 5, 32

_MEASURED_AT_ONCE = 2 << 30  # bytes of Kronecker factors; a layer that has more is measured by itself
_ROOT_BYTES = 40  # for each entry of a Kronecker factor while its powers are computed, and of these


def is_measured(pair: Pair, config: CompressConfig) -> bool:
    """Return whether sensitivity to a tensor is measured: to matrices that a method codes, but for stacks."""
    is_matrix = pair.role is Role.PROJECTION and pair.base is not None and not pair.is_stack
    return is_matrix and pair.finetuned.is_floating and is_feasible(pair.shape, config.projections)


def is_weighted(block: Block, pairs: Pairs, config: CompressConfig) -> bool:
    """Return whether a block is coded by sensitivity: its factors follow from that, and none are stored."""
    gradients = calibration_of(config) == "gradients"
    return gradients and any(is_measured(pairs[name], config) for name in block.tensors)


def kronecker_bytes(block: Block, pairs: Pairs, config: CompressConfig) -> int:
    """Return the bytes of the Kronecker factors of a block's matrices, float32."""
    own = (pairs[name] for name in block.tensors if name in pairs)
    return sum(4 * sum(side**2 for side in pair.shape) for pair in own if is_measured(pair, config))


def sensitivity_groups(pairs: Pairs, blocks: Sequence[Block], config: CompressConfig) -> list[list[Block]]:
    """Return blocks that have some Kronecker factors, those together that are measured in one run through the model."""
    groups: list[list[Block]] = []
    held = 0
    for block in blocks:
        size = kronecker_bytes(block, pairs, config)
        if size and (not groups or held + size > _MEASURED_AT_ONCE):
            groups.append([])
            held = 0
        if size:
            groups[-1].append(block)
            held += size
    return groups


def weighting_bytes(block: Block, pairs: Pairs, config: CompressConfig) -> int:
    """Memory of coding a block by sensitivity beyond that of coding it: its Kronecker factors, and roots of two."""
    sides = (max(pairs[name].shape) for name in block.tensors if is_measured(pairs[name], config))
    return kronecker_bytes(block, pairs, config) + 2 * _ROOT_BYTES * max(sides, default=0) ** 2


def sensitivity_bytes(pairs: Pairs, blocks: Sequence[Block], config: CompressConfig) -> int:
    """Memory of measuring sensitivity and of coding by it, at most; 0 where that is not done."""
    if calibration_of(config) != "gradients":
        return 0
    measuring = (measuring_bytes(pairs, blocks, group, config) for group in sensitivity_groups(pairs, blocks, config))
    return max([*measuring, *(weighting_bytes(block, pairs, config) for block in blocks)], default=0)


def measuring_bytes(pairs: Pairs, blocks: Sequence[Block], group: Sequence[Block], config: CompressConfig) -> int:
    """Memory of measuring sensitivity to some of a model's blocks in one run through it, at most."""
    return training_bytes(pairs, blocks) + 2 * sum(kronecker_bytes(block, pairs, config) for block in group)


def distil_bytes(pairs: Pairs, blocks: Sequence[Block], config: CompressConfig) -> int:
    """Memory of training gains, at most; 0 where none are trained.

    The model as its weights are stored, and of a block or a table in float32 what is worked on. What gains multiply:
    of vectors all entries, of others those that are kept. Each block keeps what it is given for the way back, and its
    own activations while it is run again; of one batch there are logits, log-probabilities and gradients. The
    fine-tune's predictions are those for as much text as there is by default.
    """
    return training_bytes(pairs, blocks) + int(4 * _multiplied(pairs, config)) if config.distils else 0


def training_bytes(pairs: Pairs, blocks: Sequence[Block]) -> int:
    """Memory of running a model forward and back on a batch, as `distil_bytes` says, at most."""
    sizes = [sum(pairs[name].finetuned.numel for name in block.tensors if _is_run(pairs[name])) for block in blocks]
    tables = [pair.shape for pair in pairs.values() if pair.role in VOCABULARY and len(pair.shape) == 2]
    rows, width = max(tables, key=math.prod, default=(0, 0))
    inner = max(sum(sum(pairs[name].shape[-2:]) for name in block.tensors) for block in blocks)
    activations = BATCH_TOKENS * (len(blocks) * width + _KEPT_FOR_THE_WAY_BACK * inner + _OF_LOGITS * rows)
    predictions = SEQUENCES * LENGTH * 2 * min(LIKELIEST, rows)
    weights = sum(pair.finetuned.nbytes for pair in pairs.values())
    return weights + 4 * (2 * max(*sizes, rows * width) + activations + predictions)


def _is_run(pair: Pair) -> bool:
    return pair.role not in VOCABULARY


def _multiplied(pairs: Pairs, config: CompressConfig) -> float:
    """Return how many float32 values what gains multiply takes, at most."""
    settings, method, total = config.projections, METHODS.get(config.method), 0.0
    for pair in pairs.values():
        if pair.role is Role.PROJECTION and not pair.is_stack and pair.base and is_feasible(pair.shape, settings):
            m, n = pair.shape
            entries = min(1.0, _MOST_HELD / config.cr) * m * n if method.reads_delta(settings) else 0
            total += max(entries, min(method.needed_rank(m, n, settings) or 0, m, n) * (m + n))
    return total
