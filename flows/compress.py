"""Flow: a fine-tuned checkpoint → a published delta. Blocks are mapped over tasks, then gathered."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.progress import report
from flows.run_page import show_compression
from impart_core.artifacts.delta import Delta, block_recipe, delta_recipe, open_delta, whole_delta
from impart_core.artifacts.factors import factors_recipe
from impart_core.artifacts.provenance import Stopwatch, peak_rss_bytes
from impart_core.artifacts.refs import require_ref_name, set_ref
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
from tasks.publish import gather_delta
from tasks.references import BlockJob, BlockResult, DeltaJob, FactorsResult
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


class CompressReport(Frozen):
    """What a compression made: the artifact, both ratios, all its bytes, and what it cost.

    `decompositions` counts the matrices that were decomposed for their factors to be published, `reused_factors`
    those whose factors were there already, and `fallbacks` how often a quick decomposition did not hold. Of its
    `seconds`, `busy_seconds` went by inside numeric kernels and file input and output; the rest is overhead.
    `events_sent` and `events_lost` count OpenLineage events; both are 0 where no receiver is configured.
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
    seconds: float
    busy_seconds: float
    peak_rss_bytes: int
    events_sent: int = 0
    events_lost: int = 0


@dataclass(frozen=True)
class Compression:
    """A finished compression: what it was run on, what it reports, the delta, and which blocks' ids it made anew."""

    request: CompressRequest
    report: CompressReport
    delta: Delta
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
    watch, busy_before = Stopwatch(), busy_seconds()
    base, finetuned, work = check_compress(request)
    # Every task reads what was checked here: a Hub id's revision stands for the same commit until the end.
    request = request.model_copy(update={"base": base.location, "finetuned": finetuned.location})
    sides = [digest_checkpoint.submit(request.base), digest_checkpoint.submit(request.finetuned)]
    digests = (sides[0].result(), sides[1].result())
    recipe = delta_recipe(base, finetuned, request.config, digests)
    store = Store(request.store)
    results: list[BlockResult] = []
    factors: list[FactorsResult] = []
    delta = whole_delta(store, recipe.id)
    if delta is None:
        results, factors = _map_blocks(request, work, digests)
        ids = tuple(result.id for result in results)
        job = DeltaJob(finetuned=request.finetuned, recipe=recipe, blocks=ids, store=request.store, name=request.name)
        delta = open_delta(store, gather_delta(job))
    elif request.name:
        set_ref(store, request.name, delta.manifest.id)
    made = frozenset(result.id for result in results if not result.cached)
    return Compression(request, _report(request, delta, results, factors, watch, busy_before), delta, made)


def _map_blocks(
    request: CompressRequest, work: Work, digests: tuple[dict[str, str], dict[str, str]]
) -> tuple[list[BlockResult], list[FactorsResult]]:
    """Decompose and sparsify every block; a block is sparsified as soon as it is decomposed.

    Decompositions are started a few blocks ahead only, so that finished blocks are published early.
    """
    jobs = [_job(request, work, block, digests) for block in work.blocks]
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
    )


def _report(
    request: CompressRequest,
    delta: Delta,
    results: list[BlockResult],
    factors: list[FactorsResult],
    watch: Stopwatch,
    busy_before: float,
) -> CompressReport:
    made = sum(not result.cached for result in results)
    return CompressReport(
        artifact=delta.manifest.id,
        name=request.name,
        store=request.store,
        cr_projection=delta.content.cr_projection,
        cr_model=delta.cr_model,
        bytes=delta.bytes,
        blocks=len(delta.blocks),
        cached_blocks=len(delta.blocks) - made,
        decompositions=sum(found.matrices for found in factors if not found.cached),
        reused_factors=sum(found.matrices for found in factors if found.cached),
        fallbacks=sum(found.fallbacks for found in factors if not found.cached),
        seconds=round(watch.seconds, 3),
        busy_seconds=round(busy_seconds() - busy_before, 3),
        peak_rss_bytes=peak_rss_bytes(),
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
    show_compression(done.report, done.delta, done.made)
    return done.report.model_copy(update={"events_sent": run.sent, "events_lost": run.lost})


def run_compress(request: CompressRequest) -> CompressReport:
    """Run the flow with the request's number of workers, by default one for each core."""
    runner: Any = ThreadPoolTaskRunner(max_workers=request.workers or default_workers())
    return compress.with_options(task_runner=runner)(request)


def absolute(location: str) -> str:
    """Return a folder as an absolute path, so that a task means the same wherever it runs; a URL or Hub id as it is."""
    return location if is_remote(location) else str(Path(location).expanduser().absolute())
