"""Compressing a model: every block decomposed and encoded, then gathered under one delta."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from impart_core.artifacts.delta import delta_recipe
from impart_core.base.errors import ArtifactNotFoundError, CorruptArtifactError, StoreError
from impart_core.base.retry import Ledger, Retried, patiently, recording
from impart_core.base.settings import Frozen
from impart_core.blocks.coding import least_tokens
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.carried import is_code
from impart_core.checkpoint.pairing import Pairs
from impart_core.checkpoint.spool import spooling
from impart_core.engine.chain import quantize_layer
from impart_core.engine.distil import distil_gains
from impart_core.engine.executor import Executor, Pending, Progress
from impart_core.engine.jobs import Digests, Planned, plan_jobs, run_of
from impart_core.engine.preflight import Checked, check_compress
from impart_core.engine.references import (
    BlockGroup,
    BlockJob,
    DeltaJob,
    DeltaResult,
    DistilJob,
    FactorsResult,
    Made,
    TextJob,
)
from impart_core.engine.requests import CompressRequest
from impart_core.engine.residual import require_same_sides
from impart_core.engine.sensitivity import measure_sensitivity
from impart_core.engine.stages import (
    decompose_blocks,
    digest_checkpoint,
    find_delta,
    gather_delta,
    read_calibration_text,
    sparsify_blocks,
)
from impart_core.store.catalog import CatalogEntry
from impart_core.store.kept import keeping
from impart_core.store.manifest import Pointer
from impart_core.store.names import require_whole
from impart_core.store.pins import Pin, pin
from impart_core.store.provenance import Stopwatch, peak_rss_bytes
from impart_core.store.store import Store
from impart_core.store.sweep import discard

logger = logging.getLogger(__name__)


class CompressReport(Frozen):
    """What a compression made: the artifact, both ratios, all its bytes, and what it cost.

    `decompositions` counts the matrices that were decomposed for their factors to be published, `reused_factors`
    those whose factors were there already, `saved_bytes` what the lossless stage made the codes smaller by, and
    `fallbacks` how often a quick decomposition did not hold. `remade` says
    what was wrong with each artifact that was there and had to be made again, `changed` names those that were
    refreshed and came out otherwise, and `retried` says what was tried again and why. `notes` are sentences on the
    checkpoints, `code` names the Python files that the delta carries, and `left` what lies beside the fine-tune's
    weights and is not carried. `events_sent` and
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
    notes: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    seconds: float
    peak_rss_bytes: int
    events_sent: int = 0
    events_lost: int = 0


@dataclass(frozen=True)
class Compression:
    """A finished compression.

    Attributes:
        report: what it reports.
        blocks: the delta's blocks.
        entries: catalogue entries of all artifacts that its stages made or found, parts first and the delta last.
        new: ids of those that it made; it found the others in the store.
        sources: where its checkpoints lie, those of the Hub with their commits.
    """

    report: CompressReport
    blocks: tuple[Pointer, ...]
    entries: tuple[CatalogEntry, ...]
    new: frozenset[str]
    sources: tuple[str, ...]


def compress(
    request: CompressRequest,
    executor: Executor,
    *,
    checked: Checked | None = None,
    progress: Progress | None = None,
    run_id: str = "",
) -> Compression:
    """Compress the delta between two checkpoints and publish it; what the store holds already is reused.

    Args:
        request: what to compress.
        executor: runs the stages.
        checked: what `check_compress` returned for the request, where that was called before.
        progress: called with a stage, pieces done, their number, and what the last one was.
        run_id: the pipeline's id of the run, to be recorded.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    with recording() as ledger, keeping(request.store), spooling():
        watch = Stopwatch()
        checked = checked or patiently("check the request", lambda: check_compress(request))
        run = _Compression(request, checked, executor, progress or (lambda *_: None), run_id)
        return run.run(watch, ledger)


@dataclass
class _Parts:
    """What the stages of a run have made so far, in the model's order."""

    text: Made | None = None
    scales: Made | None = None
    before: tuple[Made, ...] = ()  # blocks, where gains were trained since
    factors: tuple[FactorsResult, ...] = ()
    blocks: tuple[Made, ...] = ()

    def all(self) -> list[Made]:
        parts = [part for part in (self.text, *self.factors, *self.before, self.scales, *self.blocks) if part]
        return list({part.id: part for part in parts}.values())


class _Compression:
    """One run of a compression."""

    def __init__(
        self, request: CompressRequest, checked: Checked, executor: Executor, progress: Progress, run_id: str
    ) -> None:
        """Take what was checked: a Hub id's revision stands for the same commit until the end."""
        self._request, self._checked, self._executor, self._progress = request, checked, executor, progress
        self._store = Store(request.store)
        self._run = run_of(request, checked, run_id)
        self._parts = _Parts()
        self._notes = checked.work.notes

    def run(self, watch: Stopwatch, ledger: Ledger) -> Compression:
        """Run all stages, and say what they made, since when, and what was tried again."""
        self._read_text()  # before all that takes long: what is wrong with it is told at once
        base, finetuned, config = self._checked.base, self._checked.finetuned, self._request.config
        anew = self._run.trust.refreshes("digest")
        sides = [self._executor.submit(digest_checkpoint, side.weights_alone(), anew) for side in (base, finetuned)]
        digests = sides[0].result(), sides[1].result()
        self._notes += _unchanged(self._checked.work.pairs, digests)
        words, over = self._parts.text.id if self._parts.text else None, self._checked.over
        recipe = patiently("read configurations", lambda: delta_recipe(base, finetuned, config, digests, words, over))
        if over:
            require_same_sides(over, recipe.inputs["base"], recipe.inputs["finetuned"])
        job = DeltaJob(self._run, finetuned, recipe, self._request.name)
        planned = plan_jobs(self._checked, digests, words, self._run)
        below = [over.id, *(block.id for block in over.blocks)] if over else []
        pins = [recipe.id, *planned.ids, *([words] if words else []), *below]
        hold = patiently("pin what may be reused", lambda: pin(self._store, pins))
        try:
            delta, faults = self._find_or_make(job, planned, hold)
            if hold.lost():
                self._require_whole(recipe.id)
        finally:
            hold.release()
        if planned.passing:
            clean_up(self._store, planned.passing)
        return self._compression(delta, faults, watch, ledger)

    def _read_text(self) -> None:
        text = self._request.calibration
        if text is not None:
            job = TextJob(self._run, text, self._checked.finetuned)
            least = least_tokens(self._request.config)
            self._parts.text = self._executor.run(read_calibration_text, job, least)

    def _require_whole(self, artifact_id: str) -> None:
        """Look once more for what was made: while the run was stopped, somebody may have cleaned up what it reuses."""
        try:
            patiently("look for the delta again", lambda: require_whole(self._store, artifact_id))
        except (ArtifactNotFoundError, CorruptArtifactError) as error:
            raise StoreError(
                "This run was stopped for so long that its pin lapsed, and parts of its delta were cleaned up. "
                f"Run the same command again: it makes what is missing. {error}"
            ) from error

    def _find_or_make(self, job: DeltaJob, planned: Planned, hold: Pin) -> tuple[DeltaResult, tuple[str, ...]]:
        """Return the delta, and what was wrong with the one that was there."""
        text = self._parts.text
        held = text and patiently("look for the text", lambda: self._store.lookup(text.id))
        if text and not held:  # cleaned up before it was pinned
            self._read_text()
        anew = self._run.trust.refreshes("gather")
        present = DeltaResult() if anew else self._executor.run(find_delta, job)
        if present.entry is not None:
            return present, ()
        _Blocks(self._request, planned, self._executor, self._progress, hold).make(self._parts)
        made = tuple(part.entry for part in (*self._parts.blocks, *self._parts.factors))
        return self._executor.run(gather_delta, replace(job, made=made)), present.faults

    def _compression(self, delta: DeltaResult, faults: Sequence[str], watch: Stopwatch, ledger: Ledger) -> Compression:
        parts, blocks, factors = self._parts.all(), self._parts.blocks, self._parts.factors
        assert delta.entry is not None
        artifact = delta.entry.id
        faults = [*faults, *(part.fault for part in parts if part.fault)]
        changed = [result.id for result in (*factors, *blocks) if result.changed]
        report = CompressReport(
            artifact=artifact,
            name=self._request.name,
            store=self._request.store,
            cr_projection=delta.cr_projection,
            cr_model=delta.cr_model,
            bytes=delta.bytes,
            saved_bytes=delta.saved_bytes,
            blocks=len(delta.blocks),
            cached_blocks=len(delta.blocks) - sum(not result.cached for result in blocks),
            decompositions=sum(result.matrices for result in factors if not result.cached),
            reused_factors=sum(result.matrices for result in factors if result.cached),
            fallbacks=sum(result.fallbacks for result in factors if not result.cached),
            remade=tuple(dict.fromkeys(faults)),
            changed=(*changed, *([artifact] if delta.changed else [])),
            retried=ledger.retried,
            seconds=round(watch.seconds, 3),
            peak_rss_bytes=peak_rss_bytes(),
            notes=(*self._notes, *_short_of(delta.cr_projection, self._request.config)),
            code=tuple(filter(is_code, self._checked.finetuned.carried)),
            left=self._checked.finetuned.left,
        )
        new = frozenset([*(part.id for part in parts if not part.cached), *([artifact] if blocks else [])])
        entries = (*(part.entry for part in parts), delta.entry)
        return Compression(report, delta.blocks, entries, new, tuple(place for _, place in self._run.sources))


def _short_of(reached: float | None, config: CompressConfig) -> tuple[str, ...]:
    """Return a sentence where the ratio that was asked for is not reached in bytes."""
    if config.is_lossless or config.accounting != "bytes" or reached is None or reached >= config.cr:
        return ()
    found = math.floor(100 * reached) / 100
    return (
        f"cr_projection is {found:g}, not the {config.cr:g} that was asked for: the budgets of some matrices are too "
        "small for the least that keeps anything of them, with what is stored around codes.",
    )


def _unchanged(pairs: Pairs, digests: Digests) -> tuple[str, ...]:
    """Return a sentence where no tensor of the fine-tune differs from the base's."""
    ours, theirs = digests
    if any(pair.base is None or ours[pair.base.name] != theirs[name] for name, pair in pairs.items()):
        return ()
    return ("Every tensor of the fine-tuned checkpoint is the same as in the base: the delta is empty.",)


class _Blocks:
    """Decomposes and encodes every block; a block is encoded as soon as it is decomposed.

    Small blocks are worked on in groups. Decompositions are started a few groups ahead only, so that finished blocks
    are published early. A layer that is calibrated is compressed once all blocks before it are, and what it was given
    is deleted once it is.
    """

    def __init__(
        self, request: CompressRequest, planned: Planned, executor: Executor, progress: Progress, hold: Pin
    ) -> None:
        """Begin nothing yet."""
        self._request, self._planned, self._executor = request, planned, executor
        self._progress, self._hold = progress, hold
        self._at_once = executor.at_once(request.workers)
        self._groups = planned.groups(self._at_once)
        self._decomposing: dict[int, Pending[tuple[FactorsResult | None, ...]]] = {}  # by the group's number
        self._encoding: dict[int, Pending[tuple[Made, ...]]] = {}
        self._made: dict[int, Made] = {}  # by the job's number

    def make(self, parts: _Parts) -> None:
        """Make all blocks, and enter what was made in the parts."""
        measured = self._planned.sensitivity
        for number, job in enumerate(measured):
            self._progress("measure", number, len(measured), job.name)
            self._executor.run(measure_sensitivity, job)
            self._progress("measure", number + 1, len(measured), job.name)
        self._progress("compress", 0, len(self._planned.jobs), "")
        for group in range(len(self._groups)):
            self._start(group)
        groups = {id(pending): group for group, pending in self._encoding.items()}
        for pending in self._executor.as_completed(list(self._encoding.values())):
            self._tell(groups[id(pending)])
        factors = (result for group in sorted(self._decomposing) for result in self._decomposing[group].result())
        parts.factors = tuple(result for result in factors if result)
        parts.blocks = tuple(self._made[number] for number in self._planned.order)
        if self._planned.distil:
            self._distil(parts, self._planned.distil)

    def _distil(self, parts: _Parts, job: DistilJob) -> None:
        """Train gains, and make the blocks again whose tensors have some; the others stay as they are."""
        self._progress("distil", 0, 1, job.config.method)
        parts.scales = self._executor.run(distil_gains, job)
        self._progress("distil", 1, 1, job.config.method)
        groups = self._planned.distilled_groups(self._at_once)
        pending = [self._executor.submit(sparsify_blocks, group) for group in groups]
        again = {
            own.block.name: made
            for group, one in zip(groups, pending, strict=True)
            for own, made in zip(group.jobs, one.result(), strict=True)
        }
        names = [self._planned.jobs[number].block.name for number in self._planned.order]
        parts.before, blocks = parts.blocks, zip(names, parts.blocks, strict=True)
        parts.blocks = tuple(again.get(name, made) for name, made in blocks)

    def _start(self, group: int) -> None:
        """Decompose some groups from this one on, wait for its own factors, and start to encode it."""
        for after in range(group, min(group + 1 + self._at_once, len(self._groups))):
            jobs = tuple(job for job in self._jobs(after) if job.factors)
            if jobs and self._request.keep_factors and after not in self._decomposing:
                self._decomposing[after] = self._executor.submit(decompose_blocks, BlockGroup(jobs))
        if group in self._decomposing:
            self._decomposing[group].result()
        layer = self._planned.layers.get(self._groups[group][0])
        if layer is None:
            read_again = bool(self._planned.layers)
            self._encoding[group] = self._executor.submit(sparsify_blocks, BlockGroup(self._jobs(group)), read_again)
            return
        for before in range(group):
            self._tell(before)
        self._encoding[group] = self._executor.submit(quantize_layer, layer)

    def _jobs(self, group: int) -> tuple[BlockJob, ...]:
        return tuple(self._planned.jobs[number] for number in self._groups[group])

    def _tell(self, group: int) -> None:
        """Wait for a group, and say once that its blocks are done."""
        for number, result in zip(self._groups[group], self._encoding[group].result(), strict=True):
            if number in self._made:
                continue
            self._made[number] = result
            name, reused = self._planned.jobs[number].block.name, " (reused)" if result.cached else ""
            self._progress("compress", len(self._made), len(self._planned.jobs), f"{name}{reused}")
            if number in self._planned.layers and not result.cached:
                clean_up(self._hold.store, [self._planned.layers[number].given.id], self._hold)


def clean_up(store: Store, activations: Sequence[str], own: Pin | None = None) -> None:
    """Delete activations; what cannot be deleted is left to `impart gc`, and is no reason to end a run."""
    try:
        patiently("clean up activations", lambda: discard(store, activations, own))
    except StoreError as error:
        logger.warning("%d activations are left in the store for impart gc: %s", len(activations), error)
