"""Flow: a fine-tuned checkpoint → a published delta. Blocks are mapped over tasks, then gathered."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.progress import report
from flows.run_page import show_compression
from impart_core.artifacts.delta import block_recipe, delta_recipe
from impart_core.artifacts.factors import factors_recipe
from impart_core.artifacts.manifest import BlockPointer
from impart_core.artifacts.pins import pin
from impart_core.artifacts.provenance import Stopwatch, peak_rss_bytes
from impart_core.artifacts.refs import require_ref_name
from impart_core.artifacts.store import Store
from impart_core.busy import busy_seconds
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.layout import Block
from impart_core.checkpoint.location import is_remote
from impart_core.config import CompressConfig, Frozen
from impart_core.numerics import default_workers, resolve_device
from impart_core.plan import Work, check_request
from tasks.datasets import Dataset, artifact_dataset, checkpoint_dataset
from tasks.decompose import decompose_block
from tasks.digest import digest_checkpoint
from tasks.events import observed_run
from tasks.publish import find_delta, gather_delta
from tasks.references import BlockJob, BlockResult, DeltaJob, DeltaResult, FactorsResult, Trust
from tasks.resources import Retried, current_flow_run, give_up, patiently, retried_in
from tasks.sparsify import sparsify_block


class CompressRequest(Frozen):
    """What a compression is run on; `config` alone of the settings is part of the artifact's id.

    `base` and `finetuned` are folders, Hub ids or fsspec URLs; see `open_checkpoint`.
    """

    base: str
    finetuned: str
    config: CompressConfig
    store: str
    name: str | None = None
    device: str = "auto"
    workers: int | None = None
    keep_factors: bool = True
    trust: Trust = Trust()


class CompressReport(Frozen):
    """What a compression made: the artifact, both ratios, all its bytes, and what it cost.

    `decompositions` counts the matrices that were decomposed for their factors to be published, `reused_factors`
    those whose factors were there already, and `fallbacks` how often a quick decomposition did not hold. `remade` says
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
    blocks: int
    cached_blocks: int
    decompositions: int
    reused_factors: int
    fallbacks: int
    remade: tuple[str, ...]
    changed: tuple[str, ...]
    retried: tuple[Retried, ...]
    seconds: float
    busy_seconds: float
    peak_rss_bytes: int
    events_sent: int = 0
    events_lost: int = 0


@dataclass(frozen=True)
class Compression:
    """A finished compression: what it was run on, what it reports, its blocks, and which of their ids it made anew."""

    request: CompressRequest
    report: CompressReport
    blocks: tuple[BlockPointer, ...]
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
    Store(request.store).require_writable()
    return base, finetuned, work


def compress_steps(request: CompressRequest) -> Compression:
    """Run a compression's tasks inside the flow that calls this."""
    try:
        return _steps(request)
    except BaseException:
        give_up(current_flow_run())
        raise


def _steps(request: CompressRequest) -> Compression:
    watch, busy_before = Stopwatch(), busy_seconds()
    base, finetuned, work = patiently("check the request", lambda: check_compress(request))
    # Every task reads what was checked here: a Hub id's revision stands for the same commit until the end.
    request = request.model_copy(update={"base": base.location, "finetuned": finetuned.location})
    anew = request.trust.refreshes("digest")
    sides = [digest_checkpoint.submit(place, anew) for place in (request.base, request.finetuned)]
    digests = (sides[0].result(), sides[1].result())
    recipe = patiently("read configurations", lambda: delta_recipe(base, finetuned, request.config, digests))
    job = DeltaJob(
        base=request.base,
        finetuned=request.finetuned,
        recipe=recipe,
        store=request.store,
        name=request.name,
        trust=request.trust,
    )
    jobs = [_job(request, work, block, digests) for block in work.blocks]
    recipes = (recipe, *(found for each in jobs for found in (each.recipe, each.factors) if found))
    hold = patiently("pin what may be reused", lambda: pin(Store(request.store), [found.id for found in recipes]))
    results: list[BlockResult] = []
    factors: list[FactorsResult] = []
    try:
        found = DeltaResult() if request.trust.refreshes("gather") else find_delta(job)
        delta = found
        if found.id is None:
            results, factors = _map_blocks(request, jobs)
            made = tuple(result.entry for result in (*results, *factors))
            delta = gather_delta(job.model_copy(update={"made": made}))
    finally:
        hold.release()
    faults = [*found.faults, *(result.fault for result in (*factors, *results) if result.fault)]
    changed = [result.id for result in (*factors, *results) if result.changed]
    report = CompressReport(
        artifact=str(delta.id),
        name=request.name,
        store=request.store,
        cr_projection=delta.cr_projection,
        cr_model=delta.cr_model,
        bytes=delta.bytes,
        blocks=len(delta.blocks),
        cached_blocks=len(delta.blocks) - sum(not result.cached for result in results),
        decompositions=sum(result.matrices for result in factors if not result.cached),
        reused_factors=sum(result.matrices for result in factors if result.cached),
        fallbacks=sum(result.fallbacks for result in factors if not result.cached),
        remade=tuple(dict.fromkeys(faults)),
        changed=(*changed, *([str(delta.id)] if delta.changed else [])),
        retried=retried_in(current_flow_run()),
        seconds=round(watch.seconds, 3),
        busy_seconds=round(busy_seconds() - busy_before, 3),
        peak_rss_bytes=peak_rss_bytes(),
    )
    return Compression(request, report, delta.blocks, frozenset(result.id for result in results if not result.cached))


def _map_blocks(request: CompressRequest, jobs: list[BlockJob]) -> tuple[list[BlockResult], list[FactorsResult]]:
    """Decompose and sparsify every block; a block is sparsified as soon as it is decomposed.

    Decompositions are started a few blocks ahead only, so that finished blocks are published early.
    """
    ahead = 1 + (request.workers or default_workers())
    report("compress", 0, len(jobs))
    decomposing: dict[int, PrefectFuture[FactorsResult | None]] = {}
    factors, sparsifying = [], []
    for number, job in enumerate(jobs):
        for after, later in enumerate(jobs[number : number + ahead], number):
            if later.factors and request.keep_factors and after not in decomposing:
                decomposing[after] = decompose_block.submit(later)
        if number in decomposing:
            factors.append(decomposing[number].result())
        sparsifying.append(sparsify_block.submit(job))
    for done, future in enumerate(as_completed(sparsifying), 1):
        result = future.result()
        report("compress", done, len(jobs), f"{result.name}{' (reused)' if result.cached else ''}")
    return [future.result() for future in sparsifying], [found for found in factors if found]


def _job(
    request: CompressRequest, work: Work, block: Block, digests: tuple[dict[str, str], dict[str, str]]
) -> BlockJob:
    factors = factors_recipe(work.pairs, block, request.config, digests)
    return BlockJob(
        base=request.base,
        finetuned=request.finetuned,
        block=block,
        recipe=block_recipe(work.pairs, block, request.config, digests, factors),
        factors=factors,
        config=request.config,
        store=request.store,
        device=request.device,
        trust=request.trust,
    )


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
