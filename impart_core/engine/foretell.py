"""What a compression would keep, foretold from a sample of its codes; the model is not run."""

from collections.abc import Callable
from dataclasses import replace

import torch

from impart_core.artifacts.factors import stored_factors
from impart_core.base.errors import ConfigError
from impart_core.base.numerics import resolve_device, return_large_memory_at_once
from impart_core.base.retry import GPU, patiently
from impart_core.blocks.coding import needs_text
from impart_core.blocks.encode import Encoder
from impart_core.blocks.request import KEEP, CompressConfig
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Block, Role
from impart_core.checkpoint.spool import spooling
from impart_core.delta.fidelity import fidelity_of
from impart_core.delta.quality import Kept, Quality, flatness_of, foretold
from impart_core.engine.executor import Executor, Progress, stage
from impart_core.engine.jobs import plan_jobs, run_of
from impart_core.engine.needs import group_need
from impart_core.engine.plan import Work, check_request
from impart_core.engine.preflight import Checked
from impart_core.engine.references import BlockGroup
from impart_core.engine.requests import CompressRequest
from impart_core.engine.stages import decompose_blocks, digest_checkpoint
from impart_core.store.kept import keeping
from impart_core.store.pins import pin

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
    _require_foretellable(config)
    work = check_request(base, finetuned, config)
    seen: list[Kept] = []
    encoder = Encoder(config, observer=_noting(seen))
    for block in _sample(work).values():
        encoder.block(work.pairs, block)
    return foretold(seen)


def foretell_by(executor: Executor, request: CompressRequest, checked: Checked, progress: Progress) -> Quality | None:
    """Foretell the same by stages, whose decompositions are kept in the store for whoever compresses the model.

    Args:
        executor: runs the stages.
        request: the request.
        checked: what `check_compress` returned for it.
        progress: called with `foretell`, layers done, their number, and the last one.

    Raises:
        ConfigError: the request is calibrated or distilled, which decides what is kept.
        ImpartError: as compressing these layers.
    """
    _require_foretellable(checked.config)
    sample = _sample(checked.work)
    whole = tuple(block for block in checked.work.blocks if block.name in sample)
    checked = replace(checked, work=replace(checked.work, blocks=whole))
    run, sides = run_of(request, checked), (checked.base, checked.finetuned)
    with keeping(run.store), spooling():
        pending = [executor.submit(digest_checkpoint, side.weights_alone()) for side in sides]
        jobs = plan_jobs(checked, (pending[0].result(), pending[1].result()), None, run).jobs
        recipes = [job.factors.id for job in jobs if job.factors]
        with patiently("pin what may be reused", lambda: pin(run.open_store(), recipes)):
            for decomposed in [executor.submit(decompose_blocks, BlockGroup((job,))) for job in jobs if job.factors]:
                decomposed.result()
            groups = [BlockGroup((replace(job, block=sample[job.block.name]),)) for job in jobs]
            coded = [executor.submit(measure_codes, group) for group in groups]
            progress("foretell", 0, len(groups), "")
            measured: list[Kept] = []
            for number, kept in enumerate(coded, 1):
                measured += kept.result()
                progress("foretell", number, len(groups), f"{checked.config.label}, {jobs[number - 1].block.name}")
    return foretold(measured)


@stage("measure codes", "measure codes of {group.name}", GPU, group_need)
def measure_codes(group: BlockGroup) -> tuple[Kept, ...]:
    """Code blocks, from factors of the store where it holds them, and return what is kept of each matrix."""
    return_large_memory_at_once()
    seen: list[Kept] = []
    for job in group.jobs:
        factors = job.factors.id if job.factors else None
        with stored_factors(job.run.open_store(), factors, imported=job.run.trust.imported) as stored:
            device = resolve_device(job.run.device)
            Encoder(job.config, stored, device, job.digests(), observer=_noting(seen)).block(job.pairs, job.block)
    return tuple(seen)


def _noting(seen: list[Kept]) -> Callable[[torch.Tensor, torch.Tensor], object]:
    return lambda delta, code: seen.append(Kept(fidelity_of(delta, code), flatness_of(delta)))


def notes_on(quality: Quality | None, config: CompressConfig) -> tuple[str, ...]:
    """Return sentences on what is not foretold, for whoever asked."""
    if quality is None:
        return ("No projection of the layers that were coded differs from the base's, so that no share is foretold.",)
    if config.embeddings == KEEP or config.is_lossless:
        return ()
    return ("What embeddings and head lose is not foretold: the share is that of a model that has the fine-tune's.",)


def _require_foretellable(config: CompressConfig) -> None:
    if config.distils:
        raise ConfigError(
            f"What {config.method!r} keeps when it is distilled depends on calibration text, and cannot be foretold. "
            "Leave --quality or distil out."
        )
    if needs_text(config):
        otherwise = "set solver to nearest" if "solver" in config.options.names() else "leave out what needs text"
        raise ConfigError(
            f"What {config.method!r} keeps with these settings depends on calibration text, and cannot be foretold. "
            f"Leave --quality out, or {otherwise}."
        )


def _sample(work: Work) -> dict[str, Block]:
    """Return the projections of a few blocks that have some, by the blocks' names."""
    blocks = [
        Block(block.name, names)
        for block in work.blocks
        if (names := tuple(name for name in block.tensors if work.pairs[name].role is Role.PROJECTION))
    ]
    step = max(1.0, (len(blocks) - 1) / (_LAYERS - 1))
    chosen = [blocks[round(step * number)] for number in range(min(_LAYERS, len(blocks)))]
    return {block.name: block for block in chosen}
