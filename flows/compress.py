"""Flow: a fine-tuned checkpoint → a published delta. Blocks are mapped over tasks, then gathered."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impart_flows.jobs import Planned, plan_jobs
from impart_flows.progress import report
from impart_flows.run_page import show_compression
from impart_tasks.calibrate import distil_block_scales, quantize_layer, read_calibration_text
from impart_tasks.datasets import Dataset, artifact_dataset, checkpoint_dataset
from impart_tasks.decompose import decompose_block
from impart_tasks.digest import digest_checkpoint
from impart_tasks.events import observed_run
from impart_tasks.publish import find_delta, gather_delta
from impart_tasks.references import (
    BlockResult,
    DeltaJob,
    DeltaResult,
    FactorsResult,
    MadeText,
    ScalesResult,
    TextJob,
    Trust,
)
from impart_tasks.resources import Retried, current_flow_run, give_up, patiently, retried_in
from impart_tasks.sparsify import sparsify_block
from prefect import flow
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from impart_core.artifacts.delta import delta_recipe
from impart_core.base.errors import ConfigError, StoreError
from impart_core.base.numerics import default_workers, resolve_device
from impart_core.base.settings import Frozen
from impart_core.blocks.coding import calibration_of
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.architecture import check_calibratable
from impart_core.calibrate.model import decoder_layers
from impart_core.calibrate.text import CalibrationText, check_text
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.location import is_remote
from impart_core.engine.plan import Work, check_request
from impart_core.store.gc import discard
from impart_core.store.manifest import Pointer
from impart_core.store.names import require_ref_name
from impart_core.store.pins import Pin, pin
from impart_core.store.provenance import Stopwatch, peak_rss_bytes
from impart_core.store.store import Store

logger = logging.getLogger(__name__)


class CompressRequest(Frozen):
    """What a compression is run on; `config` alone of the settings is part of the artifact's id.

    `base` and `finetuned` are folders, Hub ids or fsspec URLs; see `open_checkpoint`. Where the method needs
    calibration text, its tokens are part of the id, too.
    """

    base: str
    finetuned: str
    config: CompressConfig
    store: str
    name: str | None = None
    device: str = "auto"
    workers: int | None = None
    keep_factors: bool = True
    calibration: CalibrationText | None = None
    trust: Trust = Trust()


class CompressReport(Frozen):
    """What a compression made: the artifact, both ratios, all its bytes, and what it cost.

    `decompositions` counts the matrices that were decomposed for their factors to be published, `reused_factors`
    those whose factors were there already, `saved_bytes` what the lossless stage made the codes smaller by, and
    `fallbacks` how often a quick decomposition did not hold. `remade` says
    what was wrong with each artifact that was there and had to be made again, `changed` names those that were
    refreshed and came out otherwise, and `retried` says what was tried again and why. Of its `seconds`,
    `busy_seconds` went by inside numeric kernels and file input and output; the rest is overhead. `events_sent` and
    `events_lost` count OpenLineage events; both are 0 where no receiver is configured.
    """

    artifact: str
    name: str | None
    store: str
    cr_projection: float | None
    cr_model: float
    bytes: int
    saved_bytes: int
    blocks: int
    cached_blocks: int
    decompositions: int
    reused_factors: int
    fallbacks: int
    remade: tuple[str, ...]
    changed: tuple[str, ...]
    retried: tuple[Retried, ...]
    seconds: float
    peak_rss_bytes: int
    events_sent: int = 0
    events_lost: int = 0


@dataclass(frozen=True)
class Compression:
    """A finished compression: what it was run on, what it reports, its blocks, and which of their ids it made anew."""

    request: CompressRequest
    report: CompressReport
    blocks: tuple[Pointer, ...]
    made: frozenset[str]

    def inputs(self) -> tuple[Dataset, Dataset]:
        """Return its two checkpoints, those of the Hub with their commits."""
        return checkpoint_dataset(self.request.base), checkpoint_dataset(self.request.finetuned)

    def output(self) -> Dataset:
        """Return the delta."""
        made = self.report
        return artifact_dataset(made.store, made.artifact, "delta", made.bytes, made.cached_blocks == made.blocks)


def check_compress(request: CompressRequest) -> tuple[Checkpoint, Checkpoint, Work]:
    """Check a request without doing any of its work; raise an `ImpartError` that says what to change."""
    resolve_device(request.device)
    if request.name is not None:
        require_ref_name(request.name)
    base, finetuned = open_checkpoint(request.base), open_checkpoint(request.finetuned)
    work = check_request(base, finetuned, request.config)
    _check_calibration(request, finetuned)
    Store(request.store).require_writable()
    return base, finetuned, work


def _check_calibration(request: CompressRequest, finetuned: Checkpoint) -> None:
    """Check that there is calibration text where the method needs some, and a model that it can be run through."""
    needed, method = calibration_of(request.config), request.config.method
    if needed == "none":
        if request.calibration:
            raise ConfigError(f"Calibration text has no effect on method {method!r} with these settings. Leave it out.")
        return
    if request.calibration is None:
        raise ConfigError(
            f"Method {method!r} needs calibration text. Give some with --calibration: a text or JSONL file, "
            "hub:org/dataset, or tinyzoo:math|code|chat."
        )
    check_calibratable(finetuned)
    check_text(request.calibration, finetuned)
    if needed == "inputs":
        decoder_layers(finetuned)  # refuses what cannot be run layer by layer
    if needed == "logits" and (is_remote(request.base) or is_remote(request.finetuned)):
        raise ConfigError("Distillation loads both models from folders. Download them first, or turn distil off.")


def compress_steps(request: CompressRequest) -> Compression:
    """Run a compression's tasks inside the flow that calls this."""
    try:
        return _steps(request)
    except BaseException:
        give_up(current_flow_run())
        raise


def _steps(request: CompressRequest) -> Compression:
    watch = Stopwatch()
    base, finetuned, work = patiently("check the request", lambda: check_compress(request))
    # Every task reads what was checked here: a Hub id's revision stands for the same commit until the end.
    request = request.model_copy(update={"base": base.location, "finetuned": finetuned.location})
    text = _read_text(request)  # before all that takes long: what is wrong with it is told at once
    anew = request.trust.refreshes("digest")
    sides = [digest_checkpoint.submit(place, anew) for place in (request.base, request.finetuned)]
    digests = (sides[0].result(), sides[1].result())
    words = text.id if text else None
    recipe = patiently("read configurations", lambda: delta_recipe(base, finetuned, request.config, digests, words))
    job = DeltaJob(
        base=request.base,
        finetuned=request.finetuned,
        recipe=recipe,
        store=request.store,
        name=request.name,
        trust=request.trust,
    )
    planned = plan_jobs(request.config, work, finetuned, digests, words, _places(request))
    pins = [recipe.id, *planned.ids, *([words] if words else [])]
    hold = patiently("pin what may be reused", lambda: pin(Store(request.store), pins))
    results: list[BlockResult] = []
    factors: list[FactorsResult] = []
    scales: ScalesResult | None = None
    try:
        if text and Store(request.store).lookup(text.id) is None:  # cleaned up before it was pinned
            _read_text(request)
        found = DeltaResult() if request.trust.refreshes("gather") else find_delta(job)
        delta = found
        if found.id is None:
            results, factors, scales = _map_blocks(request, planned, hold)
            made = tuple(result.entry for result in (*results, *factors))
            delta = gather_delta(job.model_copy(update={"made": made}))
    finally:
        hold.release()
    if planned.activations:  # they are of no more use
        _clean_up(request.store, planned.activations)
    parts = [part for part in (text, scales, *factors, *results) if part]
    faults = [*found.faults, *(part.fault for part in parts if part.fault)]
    changed = [result.id for result in (*factors, *results) if result.changed]
    report = CompressReport(
        artifact=str(delta.id),
        name=request.name,
        store=request.store,
        cr_projection=delta.cr_projection,
        cr_model=delta.cr_model,
        bytes=delta.bytes,
        saved_bytes=delta.saved_bytes,
        blocks=len(delta.blocks),
        cached_blocks=len(delta.blocks) - sum(not result.cached for result in results),
        decompositions=sum(result.matrices for result in factors if not result.cached),
        reused_factors=sum(result.matrices for result in factors if result.cached),
        fallbacks=sum(result.fallbacks for result in factors if not result.cached),
        remade=tuple(dict.fromkeys(faults)),
        changed=(*changed, *([str(delta.id)] if delta.changed else [])),
        retried=retried_in(current_flow_run()),
        seconds=round(watch.seconds, 3),
        peak_rss_bytes=peak_rss_bytes(),
    )
    return Compression(request, report, delta.blocks, frozenset(result.id for result in results if not result.cached))


def _clean_up(store: str, activations: Sequence[str], own: Pin | None = None) -> None:
    """Delete activations; what cannot be deleted is left to `impart gc`, and is no reason to end a run."""
    try:
        patiently("clean up activations", lambda: discard(Store(store), activations, own))
    except StoreError as error:
        logger.warning("%d activations are left in the store for impart gc: %s", len(activations), error)


def _read_text(request: CompressRequest) -> MadeText | None:
    if request.calibration is None:
        return None
    return read_calibration_text(TextJob(text=request.calibration, finetuned=request.finetuned, store=request.store))


def _places(request: CompressRequest) -> dict[str, Any]:
    shared = ("base", "finetuned", "store", "device", "trust")
    return {name: getattr(request, name) for name in shared}


def _map_blocks(
    request: CompressRequest, planned: Planned, hold: Pin
) -> tuple[list[BlockResult], list[FactorsResult], ScalesResult | None]:
    """Decompose and compress every block; a block is compressed as soon as it is decomposed.

    Decompositions are started a few blocks ahead only, so that finished blocks are published early. A layer that is
    calibrated is compressed once all blocks before it are, and what it was given is deleted once it is.
    """
    ahead, jobs = 1 + (request.workers or default_workers()), planned.jobs
    decomposing: dict[int, PrefectFuture[FactorsResult | None]] = {}
    compressing: dict[int, PrefectFuture[BlockResult]] = {}
    factors: list[FactorsResult | None] = []
    told: set[int] = set()

    def tell(number: int) -> BlockResult:
        result = compressing[number].result()
        if number not in told:
            told.add(number)
            report("compress", len(told), len(jobs), f"{result.name}{' (reused)' if result.cached else ''}")
            if number in planned.layers and not result.cached:
                given = planned.layers[number].given.id
                _clean_up(request.store, [given], hold)
        return result

    report("compress", 0, len(jobs))
    scales = distil_block_scales(planned.distil) if planned.distil else None
    for number, job in enumerate(jobs):
        for after, later in enumerate(jobs[number : number + ahead], number):
            if later.factors and request.keep_factors and after not in decomposing:
                decomposing[after] = decompose_block.submit(later)
        if number in decomposing:
            factors.append(decomposing[number].result())
        if number in planned.layers:
            for before in range(number):
                tell(before)
            compressing[number] = quantize_layer.submit(planned.layers[number], request.workers)
        else:
            compressing[number] = sparsify_block.submit(job)
    numbers = {future.task_run_id: number for number, future in compressing.items()}
    for future in as_completed(list(compressing.values())):
        tell(numbers[future.task_run_id])
    return [tell(number) for number in planned.order], [found for found in factors if found], scales


@flow(name="compress", flow_run_name="compress {request.finetuned} at CR {request.config.cr}")
def compress(request: CompressRequest) -> CompressReport:
    """Compress the delta between two checkpoints and publish it.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    with observed_run() as run:
        done = compress_steps(request)
        run.inputs += done.inputs()
        run.outputs.append(done.output())
    show_compression(done.report, done.blocks, done.made)
    return done.report.model_copy(update={"events_sent": run.sent, "events_lost": run.lost})


def run_compress(request: CompressRequest) -> CompressReport:
    """Run the flow with the request's number of workers, by default one for each core."""
    runner: Any = ThreadPoolTaskRunner(max_workers=request.workers or default_workers())
    return compress.with_options(task_runner=runner)(request)


def absolute(location: str) -> str:
    """Return a folder as an absolute path, so that a task means the same wherever it runs; a URL or Hub id as it is."""
    return location if is_remote(location) else str(Path(location).expanduser().absolute())
