"""What training gains takes, told from headers alone."""

import math
from collections.abc import Sequence

from impart_core.blocks.coding import is_feasible
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.layer import BATCH_TOKENS
from impart_core.calibrate.logits import LIKELIEST
from impart_core.calibrate.text import LENGTH, SEQUENCES
from impart_core.checkpoint.layout import Block, Role
from impart_core.checkpoint.pairing import VOCABULARY, Pairs
from impart_core.methods import METHODS

# Float32 values for each token of a batch, for what a layer's matrices are given and give, and for each token of the
# vocabulary; and those for each entry that a bit may stand for, its position included.
_KEPT_FOR_THE_WAY_BACK, _OF_LOGITS, _MOST_HELD = 3, 5, 32


def distil_bytes(pairs: Pairs, blocks: Sequence[Block], config: CompressConfig) -> int:
    """Memory of training gains, at most; 0 where none are trained.

    The model as its weights are stored, and of a block or a table in float32 what is worked on. What gains multiply:
    of vectors all entries, of others those that are kept. Each block keeps what it is given for the way back, and its
    own activations while it is run again; of one batch there are logits, log-probabilities and gradients. The
    fine-tune's predictions are those for as much text as there is by default.
    """
    if not config.distils:
        return 0
    run = [[pairs[name] for name in block.tensors if pairs[name].role not in VOCABULARY] for block in blocks]
    sizes = [sum(pair.finetuned.numel for pair in block) for block in run]
    tables = [pair.shape for pair in pairs.values() if pair.role in VOCABULARY and len(pair.shape) == 2]
    rows, width = max(tables, key=math.prod, default=(0, 0))
    inner = max(sum(sum(pairs[name].shape[-2:]) for name in block.tensors) for block in blocks)
    predictions = SEQUENCES * LENGTH * 2 * min(LIKELIEST, rows)
    activations = BATCH_TOKENS * (len(blocks) * width + _KEPT_FOR_THE_WAY_BACK * inner + _OF_LOGITS * rows)
    weights = sum(pair.finetuned.nbytes for pair in pairs.values())
    return weights + int(4 * (2 * max(*sizes, rows * width) + activations + predictions + _multiplied(pairs, config)))


def _multiplied(pairs: Pairs, config: CompressConfig) -> float:
    """Return how many float32 values what gains multiply takes, at most."""
    settings, method, total = config.projections, METHODS.get(config.method), 0.0
    for pair in pairs.values():
        if pair.role is Role.PROJECTION and not pair.is_stack and pair.base and is_feasible(pair.shape, settings):
            m, n = pair.shape
            entries = min(1.0, _MOST_HELD / config.cr) * m * n if method.reads_delta(settings) else 0
            total += max(entries, min(method.needed_rank(m, n, settings) or 0, m, n) * (m + n))
    return total
