"""Searching: candidates tried on validation items, the best scored once on the test split and published."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from pydantic import Field

from impart_core.artifacts.study import (
    StudyContent,
    StudyRecord,
    Verdict,
    publish_study,
    read_study,
    study_recipe,
    tally_of,
)
from impart_core.base.errors import ConfigError, ImpartError
from impart_core.base.retry import patiently, recording
from impart_core.base.settings import Frozen, nearest
from impart_core.base.spread import Spread
from impart_core.checkpoint.spool import spooling
from impart_core.engine.candidates import Measuring, StoreLedger
from impart_core.engine.executor import Executor, Progress, ThreadExecutor
from impart_core.engine.references import Run
from impart_core.engine.requests import Trust
from impart_core.engine.template import Template
from impart_core.engine.templates import open_template
from impart_core.engine.verdict import Judge
from impart_core.evaluation.catalogue import named_tasks
from impart_core.evaluation.harness import check_items, check_request
from impart_core.evaluation.items import SplitItems, check_validation_items, split_items
from impart_core.evaluation.language_model import hush
from impart_core.evaluation.result import Measure, RunCode
from impart_core.searching.file import SearchFile
from impart_core.searching.hole import Range
from impart_core.searching.objective import BYTES, LOSS, Aims
from impart_core.searching.result import Study, Trial
from impart_core.searching.space import Space
from impart_core.searching.starts import starting_values
from impart_core.searching.study import run_study
from impart_core.searching.warm import fitting_trials
from impart_core.store.catalog import CatalogEntry, entry_of, note
from impart_core.store.manifest import Manifest
from impart_core.store.names import require_movable, resolve, set_ref
from impart_core.store.pins import pin
from impart_core.store.publish import Reuse, made_or_found
from impart_core.store.store import Store, default_store_url


class SearchRequest(Spread):
    """A search to run; over what it is spread, as in `Spread`.

    Attributes:
        file: the search.
        store: the store's URL.
        device: where models are made and run.
        workers: candidates worked on at once; None: as many as the file has in parallel.
        run_code: whether tasks may run code that models write, in a sandbox.
        run_code_without_sandbox: whether they may without one.
        trust: how far what is there already is trusted.
    """

    file: SearchFile
    store: str = Field(default_factory=default_store_url)
    device: str = "auto"
    workers: int | None = Field(default=None, ge=1)
    run_code: bool = False
    run_code_without_sandbox: bool = False
    trust: Trust = Trust()

    @property
    def code(self) -> RunCode:
        """What the two flags come to."""
        if self.run_code_without_sandbox:
            return "unsandboxed"
        return "sandboxed" if self.run_code else "never"


@dataclass(frozen=True)
class CheckedSearch:
    """A search that can be carried out.

    Attributes:
        file: the search, with tasks by their names, groups replaced by their members, and a metric for each.
        template: its template, with its checkpoints opened.
        measuring: how candidates are scored.
        available: number of validation items of the task with the fewest.
        test: number of test items of each task.
        warm: trials of another study that tell it where to begin.
        notes: sentences on ends of ranges that the default candidate cannot have.
    """

    file: SearchFile
    template: Template
    measuring: Measuring
    available: int
    test: dict[str, int]
    warm: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, object]:
        """What stands in the recipe of the study for all that it is given: models, texts, another study."""
        other = self.file.sampler.warm_study
        return {**self.template.contents, **({"warm_study": other} if other else {})}

    @property
    def given(self) -> tuple[str, ...]:
        """Ids of the artifacts that it is given: deltas, another study."""
        deltas = [model.delta for model in self.template.experts.values()]
        return tuple(one for one in (*deltas, self.file.sampler.warm_study) if one)


class SearchReport(Frozen):
    """What a search found: the id of its study, the names that were given, and all that is kept of it.

    Attributes:
        id: id of the study's artifact.
        name: the name that the winner was published under.
        study_name: the name of the study.
        record: what is kept of it.
        cached: whether the whole study was there.
        sources: where its checkpoints lie.
        entry: its entry for the catalogue.
        seconds: how long it took.
    """

    id: str
    name: str | None
    study_name: str | None
    record: StudyRecord
    cached: bool
    sources: tuple[str, ...]
    entry: CatalogEntry = Field(exclude=True)
    seconds: float


def check_search(request: SearchRequest) -> CheckedSearch:
    """Check a request without making or scoring anything; raise an `ImpartError` that says what to change."""
    hush()  # loading tasks shows bars
    store, file = Store(request.store), request.file
    if file.name is not None:
        require_movable(store, file.name)
        require_movable(store, _study_name(file.name))
    store.require_writable()
    names, options = named_tasks(list(file.tasks), file.measuring)
    check_request(names, None, options, request.code)
    metrics = dict(zip(names, file.tasks.values(), strict=True))
    found = check_validation_items(names, file.items[-1] if file.items else 1, options)
    members = {name: metrics.get(name) or next(iter(one.higher_is_better), None) for name, one in found.items()}
    if list(members) != list(file.tasks) or members != file.tasks or options != file.measuring:
        file = SearchFile.model_validate(
            {**file.model_dump(exclude={"measuring"}), "tasks": members, "measuring": options}
        )
    _check_metrics(file, found)
    file, warm = _with_warm_study(file, store)
    available = min(one.count for one in found.values())
    rungs = file.rungs(available)
    if file.items is None:
        check_validation_items(list(members), available, options)
    measuring = Measuring(_measures(file), options, request.code, file.counts_bytes)
    for task in members:
        for measure in measuring.measures:
            check_items(task, (0, rungs[-1][1]), "validation", measure, options, request.code)
    with ThreadExecutor(2) as executor:
        template = open_template(file, store, executor)
    run = Run(request.store, request.device_here(request.device))
    for values in starting_values(file.space, file.starts):
        template.check(file.space.fill(values).filled, run)
    test = {name: one.count for name, one in split_items(list(members), "test", options).items()}
    return CheckedSearch(file, template, measuring, available, test, warm, _wrong_ends(file.space, template, run))


def _wrong_ends(space: Space, template: Template, run: Run) -> tuple[str, ...]:
    """Return sentences on ends of ranges that the default candidate cannot have.

    They are no errors: what another parameter is may allow them.
    """
    notes = []
    for name, hole in space.holes.items():
        for end in dict.fromkeys(hole.range) if isinstance(hole, Range) else ():
            try:
                template.check(space.fill({**space.defaults, name: end}).filled, run)
            except ImpartError as error:
                notes.append(
                    f"{name} cannot be {end:g}, all else as in the default candidate, and such trials fail: {error}"
                )
    return tuple(notes)


def _with_warm_study(file: SearchFile, store: Store) -> tuple[SearchFile, tuple[Trial, ...]]:
    """Return a search with the id of the study that it begins at in the place of its name, and that study's trials."""
    called = file.sampler.warm_study
    if called is None:
        return file, ()
    found = resolve(store, called)
    sampler = file.sampler.model_copy(update={"warm_study": found})
    return file.model_copy(update={"sampler": sampler}), fitting_trials(file, read_study(store, found).study, called)


def _check_metrics(aims: Aims, found: Mapping[str, SplitItems]) -> None:
    """Check that tasks have the metrics that are asked for, and that these are better the way that is taken for it."""
    for quantity in aims.quantities:
        if quantity.of == BYTES:
            continue
        for task in [quantity.of] if quantity.of in aims.tasks else aims.tasks:
            known = {LOSS: False, **found[task].higher_is_better}
            metric = quantity.metric or aims.tasks[task] or ""
            name = metric.partition(",")[0]
            if name not in known:
                listed = ", ".join(known)
                raise ConfigError(f"The task {task} has no metric {metric!r}.{nearest(name, known)} It has: {listed}.")
            if quantity.goal is None and known[name] == quantity.minimizes(aims.tasks):
                goal = "maximize" if known[name] else "minimize"
                raise ConfigError(
                    f"Which way is better with {metric} of {task} is not known here. Write the objective as "
                    f"{{of: {quantity.of}, metric: '{metric}', goal: {goal}}}, which is what the task says."
                )


def _measures(aims: Aims) -> tuple[Measure, ...]:
    """Return which measures the quantities of a search need."""
    wanted = {
        quantity.metric or metric or ""
        for quantity in aims.quantities
        if quantity.of != BYTES
        for metric in ([aims.tasks[quantity.of]] if quantity.of in aims.tasks else aims.tasks.values())
    }
    measures: list[Measure] = []
    if wanted - {LOSS}:
        measures.append("metrics")
    if LOSS in wanted:
        measures.append("answer_loss")
    return tuple(measures)


def search(
    request: SearchRequest,
    executor: Executor,
    *,
    checked: CheckedSearch | None = None,
    progress: Progress | None = None,
    run_id: str = "",
) -> SearchReport:
    """Search on validation items, score the winner once on the test split, and publish it and the study.

    What the store holds is reused, whichever search it was made for: one that was killed and is started again, or
    that shares candidates with another one, evaluates nothing twice.

    Args:
        request: what to search.
        executor: runs the stages: one a candidate and rung.
        checked: what `check_search` returned for the request, where that was called before.
        progress: called with `search`, trials done, their number (0: not known), and the best so far.
        run_id: the pipeline's id of the run, to be recorded.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    with recording(), spooling():
        checked = checked or patiently("check the request", lambda: check_search(request))
        sources = (("base", checked.template.base.location),)
        run = Run(request.store, request.device, request.trust, sources, run_id, workers=1)
        return _search(request, checked, executor, run, progress)


def _search(
    request: SearchRequest, checked: CheckedSearch, executor: Executor, run: Run, progress: Progress | None
) -> SearchReport:
    store, watch, trust, file = run.open_store(), run.watch(), request.trust, checked.file
    reuse = Reuse(trust.reread, trust.refresh_from is not None, trust.imported)
    recipe = study_recipe(file, checked.template.settings, checked.inputs)

    def make() -> Manifest:
        with StoreLedger(run, checked.template, checked.measuring, executor) as ledger:
            study = run_study(file, ledger, checked.available, progress, checked.warm)
            judge = Judge(file, checked.template, run, checked.measuring, executor)
            verdict = _judged(checked, study, judge)
            best = study.winner and file.space.fill(study.winner.values).filled
            winner = checked.template.publish(best, run) if best else None
            settings, tally = file.model_dump(mode="json"), tally_of(ledger.tally)
            record = StudyRecord(file=settings, study=study, verdict=verdict, winner=winner, tally=tally)
            parents = dict.fromkeys([*ledger.trials, *judge.trials, *([winner] if winner else []), *checked.given])
            publish = partial(publish_study, store, recipe, record, tuple(parents), watch, reuse=reuse)
            return patiently("publish the study", publish)

    with patiently("pin the study", lambda: pin(store, [recipe.id, *checked.given])):
        outcome = made_or_found(store, recipe.id, make, kind=StudyContent, reuse=reuse)
        record = patiently("read the study", lambda: read_study(store, outcome.manifest.id))
        entry = entry_of(outcome.manifest)
        patiently("enter the study", lambda: note(store, [entry]))
        study_name = _publish_names(checked, record, entry.id, run)
    return SearchReport(
        id=entry.id,
        name=file.name if record.winner else None,
        study_name=study_name,
        record=record,
        cached=outcome.cached,
        sources=_sources_of(checked.template),
        entry=entry,
        seconds=round(watch.seconds, 3),
    )


def _sources_of(template: Template) -> tuple[str, ...]:
    """Return where the checkpoints of a search lie."""
    experts = [one.checkpoint for one in template.experts.values() if one.checkpoint is not None]
    return tuple(one.location for one in (template.base, *experts))


def _judged(checked: CheckedSearch, study: Study, judge: Judge) -> Verdict | None:
    """Score the winner and what it is held against on the test split, where there is a winner."""
    if study.winner is None:
        return None
    space = checked.file.space
    best, default = (space.fill(trial.values) for trial in (study.winner, study.trials[0]))
    return judge.verdict(best, default, study.winner.rungs[-1].items, checked.test)


def _publish_names(checked: CheckedSearch, record: StudyRecord, study: str, run: Run) -> str | None:
    """Name the winner as asked, and the study beside it; return the study's name."""
    name, store = checked.file.name, run.open_store()
    if name is None:
        return None
    if record.winner and record.study.winner:
        if patiently("look for the winner", lambda: store.lookup(record.winner or "")) is None:  # cleaned up since
            checked.template.publish(checked.file.space.fill(record.study.winner.values).filled, run)
        patiently("name the winner", lambda: set_ref(store, name, record.winner or "", why="search"))
    study_name = _study_name(name)
    patiently("name the study", lambda: set_ref(store, study_name, study, why="search"))
    return study_name


def _study_name(name: str) -> str:
    """Return the name of a study whose winner has a name: `math.study@prod` of `math@prod`."""
    front, at, label = name.partition("@")
    return f"{front}.study{at}{label}"
