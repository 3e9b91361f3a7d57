"""What a compression would keep, foretold from a sample of its codes; the model is not run."""

from impart_core.base.errors import ConfigError
from impart_core.blocks.coding import calibration_of
from impart_core.blocks.encode import Encoder
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Block, Role
from impart_core.delta.quality import Quality, foretold
from impart_core.engine.plan import check_request

_LAYERS = 4  # of a model that are coded, evenly spread from the first to the last


def foretell(base: Checkpoint, finetuned: Checkpoint, config: CompressConfig) -> Quality | None:
    """Code the projections of a few layers and foretell what the whole model keeps; see `foretold`.

    Args:
        base: the base.
        finetuned: the fine-tuned checkpoint.
        config: the request.

    Returns:
        The share kept; None where no projection of these layers changed.

    Raises:
        ConfigError: the request is calibrated or distilled, which decides what is kept; or as `check_request`.
    """
    if config.is_lossless:
        return Quality(kept=1.0, error=0.0)
    if calibration_of(config) != "none" or config.distils:
        raise ConfigError(
            f"What {config.method!r} keeps with these settings depends on calibration text, and cannot be foretold. "
            "Leave --quality out, or choose a method that takes none, such as ecsq."
        )
    work = check_request(base, finetuned, config)
    blocks = [
        Block(block.name, names)
        for block in work.blocks
        if (names := tuple(name for name in block.tensors if work.pairs[name].role is Role.PROJECTION))
    ]
    step = max(1.0, (len(blocks) - 1) / (_LAYERS - 1))
    chosen = [blocks[round(step * number)] for number in range(min(_LAYERS, len(blocks)))]
    encoder = Encoder(config)
    coded = [tensor for block in chosen for tensor in encoder.block(work.pairs, block).values()]
    return foretold([one for tensor in coded for one in tensor.fidelity])
