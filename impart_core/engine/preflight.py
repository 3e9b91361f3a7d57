"""Preflight: a request checked without doing any of its work. Each checkpoint is opened once, for the whole run."""

from dataclasses import dataclass

from impart_core.artifacts.delta import Delta
from impart_core.base.errors import ConfigError
from impart_core.base.numerics import resolve_device
from impart_core.blocks.coding import calibration_of, needs_text
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.architecture import check_calibratable
from impart_core.calibrate.model import decoder_layers
from impart_core.calibrate.text import check_text
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.plain import plain
from impart_core.checkpoint.sides import require_different
from impart_core.engine.plan import Work, check_request
from impart_core.engine.requests import CompressRequest
from impart_core.engine.residual import open_over
from impart_core.store.names import require_movable, require_ref_name
from impart_core.store.store import Store


@dataclass(frozen=True)
class Checked:
    """A compression that can be carried out.

    Attributes:
        base: the base checkpoint, those of the Hub at a commit, with the files beside its weights read.
        finetuned: the fine-tuned checkpoint, likewise.
        work: the pairs of their tensors, and the blocks.
        config: the request's settings.
        layers: the blocks that are decoder layers, in the order in which they run, where they are calibrated.
        over: the lossy delta that residuals are to be against, if any.
    """

    base: Checkpoint
    finetuned: Checkpoint
    work: Work
    config: CompressConfig
    layers: tuple[str, ...] = ()
    over: Delta | None = None


def open_side(place: str, base: Checkpoint | None = None) -> Checkpoint:
    """Open one of a run's checkpoints as its model would have saved it, with the files beside its weights at hand.

    Args:
        place: where it lies.
        base: what an adapter that lies alone is merged into.
    """
    return plain(open_checkpoint(place, base)).with_files_at_hand()


def open_sides(base: str, finetuned: str) -> tuple[Checkpoint, Checkpoint]:
    """Open both checkpoints of a run, the fine-tuned one perhaps as an adapter on the base.

    Raises:
        ConfigError: they are one and the same.
        CheckpointError: one of them cannot be read.
    """
    opened = open_side(base)
    sides = opened, open_side(finetuned, opened)
    require_different(*sides)
    return sides


def check_compress(request: CompressRequest, opened: tuple[Checkpoint, Checkpoint] | None = None) -> Checked:
    """Check a request without doing any of its work; raise an `ImpartError` that says what to change.

    Args:
        request: the request.
        opened: its two checkpoints, where they are open already.
    """
    resolve_device(request.device_here(request.device))
    if request.name is not None:
        require_ref_name(request.name)
    base, finetuned = opened or open_sides(request.base, request.finetuned)
    over = open_over(request)
    work = check_request(base, finetuned, request.config, over)
    layers = _check_calibration(request, finetuned)
    store = Store(request.store)
    store.require_writable()
    if request.name is not None:
        require_movable(store, request.name)
    return Checked(base, finetuned, work, request.config, layers, over)


def _check_calibration(request: CompressRequest, finetuned: Checkpoint) -> tuple[str, ...]:
    """Check that there is calibration text where the method needs some, and a model that it can be run through.

    Returns:
        The blocks that are calibrated one after the other.
    """
    needed, method = calibration_of(request.config), request.config.method
    if not needs_text(request.config):
        if request.calibration:
            raise ConfigError(f"Calibration text has no effect on method {method!r} with these settings. Leave it out.")
        return ()
    if request.calibration is None:
        whose = {"inputs": "", "gradients": " with these settings", "none": " with distil=true"}[needed]
        raise ConfigError(
            f"Method {method!r}{whose} needs calibration text. Give some (calibration=…, on the command line "
            "--calibration): a text or JSONL file, hub:org/dataset, or tinyzoo:math|code|chat."
        )
    check_calibratable(finetuned)
    check_text(request.calibration, finetuned)
    return () if needed != "inputs" else tuple(decoder_layers(finetuned))  # refuses what does not run layer by layer
