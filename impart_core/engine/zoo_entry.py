"""One entry of the zoo brought up to date: compressed step by step until its gate is passed, then promoted."""

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from impart_core.artifacts.delta import DeltaContent
from impart_core.base.errors import ConfigError
from impart_core.base.retry import patiently
from impart_core.base.settings import Frozen
from impart_core.checkpoint.digest import checkpoint_id, tensor_digests
from impart_core.engine.compress import CompressReport, compress
from impart_core.engine.evaluate import evaluate
from impart_core.engine.executor import Executor, Progress
from impart_core.engine.foretell import foretell_by
from impart_core.engine.merge import merge
from impart_core.engine.preflight import Checked, check_compress, open_side, open_sides
from impart_core.engine.requests import CompressRequest, EvaluateRequest, MergeRequest, Trust
from impart_core.engine.search import SearchRequest, search
from impart_core.merging.file import MergeFile
from impart_core.searching.file import SearchFile
from impart_core.store.names import get_ref, set_ref
from impart_core.store.pins import pin
from impart_core.store.provenance import Stopwatch, peak_rss_bytes
from impart_core.store.store import Store
from impart_core.zoo.file import ZooModel
from impart_core.zoo.forecast import Forecast, key_of
from impart_core.zoo.gate import Comparison, Gate, Metrics, compare, deciding_metric, quality
from impart_core.zoo.recipe import Step, worth_foretelling
from impart_core.zoo.record import Attempt, Kind, Outcome

_NOT_MEASURED = "Lossless: every bit is the fine-tuned model's, and so are its scores. Nothing was measured again."


class EntryJob(Frozen):
    """An entry to bring up to date: a model, a merge or a search.

    Attributes:
        name: the entry's name.
        ref: the name that it is published under.
        store: the store.
        device: where models are compressed and run.
        workers: blocks worked on at once.
        run_code: whether tasks may run code that models write.
        trust: how far what is there already is trusted.
        fingerprint: of all that it depends on; see `Outcome`.
        base_listing: of a model's base; see `Outcome`.
        owner: whose it is.
        tags: its tags.
        gate: what the result has to keep.
        steps: what is tried, of a model.
        foretold_at_least: what a step has to be foretold to keep to be tried; see `ZooRecipe`.
        forecasts: what was foretold of the steps in earlier runs, and still holds.
        sides: a digest of the files of a model's base and fine-tune; None: it cannot be told when they change.
        model: where a model lies.
        stages: of a merge.
        search: a search.
    """

    name: str
    ref: str
    store: str
    device: str = "auto"
    workers: int | None = None
    run_code: bool = False
    trust: Trust = Trust()
    fingerprint: str | None = None
    base_listing: str | None = None
    owner: str | None = None
    tags: tuple[str, ...] = ()
    gate: Gate = Gate()
    steps: tuple[Step, ...] = ()
    foretold_at_least: float | None = Field(default=None, exclude_if=lambda share: share is None)
    forecasts: tuple[Forecast, ...] = ()
    sides: str | None = None
    model: ZooModel | None = None
    stages: tuple[MergeFile, ...] = ()
    search: SearchFile | None = None

    @property
    def kind(self) -> Kind:
        """What the entry is."""
        return "model" if self.model else "merge" if self.stages else "search"

    @property
    def base(self) -> str | None:
        """Where the base lies that its result is a delta of; None: that is not said in so many words."""
        if self.model:
            return self.model.base
        if self.stages:
            named = self.stages[-1].base_model
            return named.place if named and named.adapter is None else None
        template = (self.search.merge or self.search.compress or {}) if self.search else {}
        place = template.get("base_model" if self.search and self.search.merge else "base")
        return place if isinstance(place, str) else None

    def foretells(self, step: Step) -> bool:
        """Return whether it is foretold what a step keeps, so that it may be passed over."""
        return self.foretold_at_least is not None and any(step is one for one in worth_foretelling(self.steps))

    def known_forecast(self, step: Step) -> Forecast | None:
        """Return what was foretold of a step in an earlier run, held against the share that is asked for now."""
        key, at_least = key_of(self.sides, step.config), self.foretold_at_least
        known = next((one for one in self.forecasts if key and one.key == key), None)
        return known.held_against(at_least) if known and at_least is not None else None

    def outcome(self, **found: Any) -> Outcome:
        """Return what became of it."""
        known = {
            name: getattr(self, name)
            for name in ("name", "kind", "ref", "owner", "tags", "fingerprint", "base_listing", "forecasts")
        }
        return Outcome(**{**known, "peak_rss_bytes": peak_rss_bytes(), **found})


def work_on(job: EntryJob, executor: Executor, progress: Progress | None = None, run_id: str = "") -> Outcome:
    """Bring an entry up to date, and return what became of it.

    Args:
        job: the entry.
        executor: runs the stages.
        progress: as for `compress`.
        run_id: the pipeline's id of the run, to be recorded.

    Raises:
        ImpartError: it cannot be; its name stays where it was.
    """
    watch, work = Stopwatch(), _Work(job, executor, progress, run_id)
    outcome = {"model": work.model, "merge": work.merge, "search": work.search}[job.kind]()
    return outcome.model_copy(update={"seconds": round(watch.seconds, 3)})


@dataclass(frozen=True)
class _Work:
    """An entry that is worked on; attributes as for `work_on`."""

    job: EntryJob
    executor: Executor
    progress: Progress | None
    run_id: str

    def model(self) -> Outcome:
        """Try the steps of a model's recipe until one passes the gate."""
        model, gate = self.job.model, self.job.gate
        assert model is not None
        base, finetuned = patiently("open the checkpoints", lambda: open_sides(model.base, model.place))
        before = self._measure(model.place, model.base if finetuned.adapter else None) if gate.tasks else None
        attempts, forecasts = list[Attempt](), list[Forecast]()
        for step in self.job.steps:
            request = self._request(model, step)
            checked = patiently("check the request", lambda: check_compress(request, (base, finetuned)))  # noqa: B023
            forecast = self._forecast(step, request, checked) if self.job.foretells(step) else None
            forecasts += [forecast] if forecast else []
            if forecast and forecast.passed_over:
                continue
            made = compress(request, self.executor, checked=checked, progress=self.progress, run_id=self.run_id).report
            attempts.append(self._attempt(step, made, model.base, before))
            if attempts[-1].passed:
                break
        foretold = {one.key for one in forecasts}
        forecasts += [one for one in self.job.forecasts if one.key not in foretold]
        return self._end(attempts, bytes_before=finetuned.nbytes, forecasts=tuple(forecasts))

    def _forecast(self, step: Step, request: CompressRequest, checked: Checked) -> Forecast | None:
        """Return what a step is foretold to keep, as earlier runs have it or from codes; None where nothing tells."""
        at_least, known = self.job.foretold_at_least, self.job.known_forecast(step)
        if known or at_least is None:
            return known
        found = foretell_by(self.executor, request, checked, self.progress or (lambda *_: None))
        return Forecast.of(step.label, found, at_least, key_of(self.job.sides, step.config)) if found else None

    def merge(self) -> Outcome:
        """Merge, and compress the result as the file says."""
        request = MergeRequest(
            stages=self.job.stages,
            store=self.job.store,
            device=self.job.device,
            workers=self.job.workers,
            trust=self.job.trust,
        )
        made = merge(request, self.executor, progress=self.progress, run_id=self.run_id).report
        if made.delta is None:
            raise ConfigError(f"The merge {self.job.name} is not compressed. Give it impart: {{compress: {{cr: 16}}}}.")
        label = f"{made.method} of {len(self.job.stages[-1].references())} models"
        gate = self.job.gate
        found = compare(gate, None, self._measure(made.delta.artifact, None)) if gate.tasks else ()
        return self._end([_attempted(label, made.delta, found)], bytes_before=made.bytes)

    def search(self) -> Outcome:
        """Run a search, which publishes its winner."""
        assert self.job.search is not None
        request = SearchRequest(
            file=self.job.search.model_copy(update={"name": self.job.ref}),
            store=self.job.store,
            device=self.job.device,
            run_code=self.job.run_code,
            trust=self.job.trust,
        )
        found = search(request, self.executor, progress=self.progress, run_id=self.run_id)
        winner = found.record.winner
        if winner is None:
            return self._refused("No candidate keeps the search's constraints.")
        size = patiently("look for the delta", lambda: bytes_of(self._store, winner))
        about = {"bytes_after": size, **self._base()}
        return self.job.outcome(status="promoted", artifact=winner, **about)

    def _base(self) -> dict[str, Any]:
        """Return which base the result fits."""
        place = self.job.base
        if place is None or self._named(place):  # a name is no checkpoint
            return {}
        found = patiently("open the base", lambda: open_side(place))
        return {"base": place, "base_id": checkpoint_id(tensor_digests(found))}

    def _named(self, name: str) -> str | None:
        """Return what a name points to."""
        return patiently(f"look for {name}", lambda: get_ref(self._store, name))

    @property
    def _store(self) -> Store:
        return Store(self.job.store)

    def _request(self, model: ZooModel, step: Step) -> CompressRequest:
        return CompressRequest(
            base=model.base,
            finetuned=model.place,
            config=step.config,
            store=self.job.store,
            device=self.job.device,
            workers=self.job.workers,
            keep_factors=len(self.job.steps) > 1,
            calibration=step.calibration,
            trust=self.job.trust,
        )

    def _measure(self, model: str, base: str | None) -> Metrics:
        """Return what a model, a delta's id or a place, scores on the gate's tasks."""
        gate = self.job.gate
        request = EvaluateRequest(
            model=model,
            base=base,
            tasks=tuple(gate.tasks),
            split=gate.split,
            limit=gate.limit,
            store=self.job.store,
            device=self.job.device,
            run_code=self.job.run_code,
            measuring=gate.measuring,
            trust=self.job.trust,
        )
        results = evaluate(request, self.executor, progress=self.progress, run_id=self.run_id)
        # A task may be given by its file's path: results come in the order in which tasks are asked for.
        found = {task: one.metrics.get(one.task, {}) for task, one in zip(gate.tasks, results, strict=True)}
        for task, metrics in found.items():  # where nothing but a result tells which there are, the first one does
            deciding_metric(gate, task, metrics)
        return found

    def _attempt(self, step: Step, made: CompressReport, base: str, before: Metrics | None) -> Attempt:
        """Measure what was compressed, and hold it against the gate; what is lossless scores as the fine-tune did."""
        gate = self.job.gate
        if before is None:
            return _attempted(step.label, made, ())
        after = before if step.is_lossless else self._measure(made.artifact, base)
        why = _NOT_MEASURED if step.is_lossless else ""
        return _attempted(step.label, made, compare(gate, before, after), why)

    def _end(self, attempts: list[Attempt], **about: Any) -> Outcome:
        """Promote what the last attempt made if it passed."""
        last, store, job = attempts[-1], self._store, self.job
        about |= {"attempts": tuple(attempts), **self._base()}
        if not last.passed:
            failing = "; ".join(quality(one) for one in last.gate if not one.passed)
            advice = "Add a step of a lower ratio to the recipe, or let the gate allow more."
            steps = len(job.steps)
            tried = f"The last of {steps} steps, {last.step}," if steps > 1 else f"{last.step}"
            return self._refused(f"{tried} does not pass the gate: {failing}. {advice}", **about)
        with patiently("pin the delta", lambda: pin(store, [last.artifact])):
            # Whoever cleans up deletes a delta before its parts: one that is there now has them all, and keeps them.
            patiently("look for the delta", lambda: store.manifest(last.artifact))
            patiently("promote the delta", lambda: set_ref(store, job.ref, last.artifact, why=f"zoo: {last.step}"))
        return job.outcome(status="promoted", artifact=last.artifact, bytes_after=last.bytes, **about)

    def _refused(self, why: str, **about: Any) -> Outcome:
        kept = self._named(self.job.ref)
        size = patiently("look for the delta", lambda: bytes_of(self._store, kept))
        stays = f"{self.job.ref} stays as it was." if kept else f"There is no {self.job.ref}."
        return self.job.outcome(status="refused", artifact=kept, bytes_after=size, why=f"{why} {stays}", **about)


def _attempted(label: str, made: CompressReport, gate: tuple[Comparison, ...], why: str = "") -> Attempt:
    return Attempt(
        step=label,
        artifact=made.artifact,
        bytes=made.bytes,
        cr_model=made.cr_model,
        cached=made.cached_blocks == made.blocks,
        gate=gate,
        passed=all(one.passed for one in gate),
        why=why,
    )


def bytes_of(store: Store, artifact: str | None) -> int:
    """Return all bytes of a delta; 0 for anything else."""
    found = store.lookup(artifact) if artifact else None
    if found is None or not isinstance(found.content, DeltaContent):
        return 0
    return found.nbytes + sum(pointer.bytes for pointer in found.content.pointers())
