"""The zoo brought up to date: every entry that something has changed for, failures apart from each other."""

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Event

from impart_core.artifacts.zoo_run import last_zoo_run, publish_zoo_run, ref_of
from impart_core.base.errors import ConfigError, ImpartError, unknown_name
from impart_core.base.numerics import resolve_device
from impart_core.base.retry import patiently, recording
from impart_core.base.settings import Frozen
from impart_core.base.text import without_secrets
from impart_core.checkpoint.listing import find_models
from impart_core.engine.executor import Executor, Progress
from impart_core.engine.requests import Trust
from impart_core.engine.zoo_entry import EntryJob, work_on
from impart_core.engine.zoo_inputs import Inputs
from impart_core.evaluation.catalogue import named_tasks
from impart_core.evaluation.harness import check_request
from impart_core.lineage.events import public_url
from impart_core.merging.file import MergeFile, merge_of, read_merge_file
from impart_core.searching.file import SearchFile, parse_search, read_search_file
from impart_core.store.catalog import entry_of, note
from impart_core.store.gc import collect
from impart_core.store.names import all_refs, require_ref_name
from impart_core.store.provenance import Stopwatch
from impart_core.store.store import Store, default_store_url
from impart_core.zoo.file import Entry, Pattern, Step, ZooFile, ZooMerge, ZooModel, ZooSearch, require_unique
from impart_core.zoo.gate import Gate
from impart_core.zoo.record import Kind, Outcome, ZooRun

logger = logging.getLogger(__name__)
Each = Callable[[EntryJob, Progress], Outcome]


class ZooRequest(Frozen):
    """A zoo to bring up to date.

    Attributes:
        zoo: what its file says.
        store: the store's URL; None: as the file says, else IMPART_STORE.
        only: names of entries, patterns of names with `*`, or `tag:WORD` and `owner:NAME`; empty: all.
        again: whether entries are worked on that nothing has changed for.
        trust: how far what is there already is trusted.
    """

    zoo: ZooFile
    store: str | None = None
    only: tuple[str, ...] = ()
    again: bool = False
    trust: Trust = Trust()

    @property
    def place(self) -> str:
        """The store's URL."""
        return self.store or self.zoo.store or default_store_url()


@dataclass(frozen=True)
class CheckedZoo:
    """A zoo that can be brought up to date.

    Attributes:
        jobs: its entries, in the order in which they are worked on.
        known: what is known of each without work, by name: those that are unchanged or left out.
        before: what became of each entry in the zoo's last run, by name.
    """

    jobs: tuple[EntryJob, ...]
    known: Mapping[str, Outcome]
    before: Mapping[str, Outcome]

    @property
    def work(self) -> tuple[EntryJob, ...]:
        """The entries that have to be worked on."""
        return tuple(job for job in self.jobs if job.name not in self.known)


def check_zoo(request: ZooRequest) -> CheckedZoo:
    """Check a zoo without doing any of its work, and find what has to be done.

    Raises:
        ImpartError: something in the file cannot be carried out, or a base is another one than at the last run.
    """
    zoo, store = request.zoo, Store(request.place)
    resolve_device(zoo.device)
    patiently("try the store", store.require_writable)
    require_ref_name(ref_of(zoo.zoo))
    entries = _entries(zoo)
    _check_gates(zoo, entries)
    last = last_zoo_run(store, zoo.zoo)
    before = {outcome.name: outcome for outcome in last.outcomes} if last else {}
    inputs = Inputs(store)
    jobs = tuple(inputs.stamped(_job(request, entry)) for entry in entries)
    inputs.require_same_bases(before.values())
    wanted = _wanted(request.only, jobs)
    known = {job.name: _left_out(job, before.get(job.name)) for job in jobs if job.name not in wanted}
    if not request.again:
        known |= _unchanged(store, [job for job in jobs if job.name in wanted], before)
    return CheckedZoo(jobs, known, before)


def run_zoo(
    request: ZooRequest,
    executor: Executor,
    *,
    checked: CheckedZoo | None = None,
    each: Each | None = None,
    progress: Progress | None = None,
    run_id: str = "",
) -> ZooRun:
    """Bring a zoo up to date, and publish what became of each entry.

    An entry that fails stops none of the others. Models come first, then merges, then searches.

    Args:
        request: the zoo.
        executor: runs the stages of entries.
        checked: what `check_zoo` returned for the request, where that was called before.
        each: brings one entry up to date, and calls what it is given with its progress; None: `work_on`, here.
        progress: called with `zoo`, entries done, their number, and what became of the last.
        run_id: the pipeline's id of the run, to be recorded.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    with recording():
        watch, started = Stopwatch(run=run_id), datetime.now(UTC)
        checked = checked or check_zoo(request)
        outcomes = _outcomes(
            request, checked, each or (lambda job, tick: work_on(job, executor, tick, run_id)), progress
        )
        collected, trouble = _clean_up(request)
        run = ZooRun(
            zoo=request.zoo.zoo,
            run=run_id or uuid.uuid4().hex,
            started=started.isoformat(timespec="seconds"),
            seconds=round(watch.seconds, 3),
            store=public_url(request.place),
            outcomes=tuple(outcomes[job.name] for job in checked.jobs),
            collected=collected,
            trouble=trouble,
        )
        store = Store(request.place)
        manifest = patiently("publish the run", lambda: publish_zoo_run(store, run, watch))
        patiently("enter the run", lambda: note(store, [entry_of(manifest)]))
        return run


def _outcomes(request: ZooRequest, checked: CheckedZoo, each: Each, progress: Progress | None) -> dict[str, Outcome]:
    """Work on entries; merges begin once all models are done, and searches once all merges are."""
    found: dict[str, Outcome] = {}
    tell = progress or (lambda *_: None)
    tell("zoo", 0, len(checked.jobs), "")
    for kind in ("model", "merge", "search"):
        known, work = _foreseen(request, checked, kind, found)
        found |= known
        for outcome in _worked_on(work, checked.before, each, request.zoo.concurrency):
            found[outcome.name] = outcome
            tell("zoo", len(found), len(checked.jobs), f"{outcome.name} {outcome.status}")
    return found


def _worked_on(jobs: Sequence[EntryJob], before: Mapping[str, Outcome], each: Each, at_once: int) -> Iterator[Outcome]:
    """Give what becomes of entries, so many of which are worked on at once, in the order in which they get done.

    When the caller is interrupted, those under way are stopped before their next block or task.
    """
    stopping = Event()

    def tick(*_: object) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt

    def attempt(job: EntryJob) -> Outcome:
        return _attempt(each, job, tick, before[job.name].artifact if job.name in before else None)

    if at_once == 1:  # in this thread, so that an interrupt reaches the work itself
        yield from map(attempt, jobs)
        return
    with ThreadPoolExecutor(at_once, thread_name_prefix="zoo") as pool:
        try:
            pending = [pool.submit(copy_context().run, attempt, job) for job in jobs]
            for one in as_completed(pending):
                yield one.result()
        except BaseException:
            stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _foreseen(
    request: ZooRequest, checked: CheckedZoo, kind: Kind, done: Mapping[str, Outcome]
) -> tuple[dict[str, Outcome], list[EntryJob]]:
    """Return which entries of a kind need no work, and which do, as names point by now."""
    jobs = [job for job in checked.jobs if job.kind == kind]
    if kind != "model" and any(outcome.status == "promoted" for outcome in done.values()):
        inputs, store = Inputs(Store(request.place)), Store(request.place)
        left_out = {name for name, outcome in checked.known.items() if outcome.status == "left out"}
        jobs = [inputs.stamped(job) for job in jobs]
        again = [] if request.again else [job for job in jobs if job.name not in left_out]
        known = {name: checked.known[name] for name in left_out} | _unchanged(store, again, checked.before)
    else:
        known = dict(checked.known)
    return (
        {job.name: known[job.name] for job in jobs if job.name in known},
        [job for job in jobs if job.name not in known],
    )


def _attempt(each: Each, job: EntryJob, progress: Progress, kept: str | None) -> Outcome:
    """Work on an entry; what goes wrong is told of it alone."""
    watch = Stopwatch()
    try:
        return each(job, progress)
    except Exception as error:
        ours = isinstance(error, ImpartError)
        if not ours:
            logger.exception("The entry %s failed", job.name)
        why = str(error) if ours else f"{type(error).__name__}: {error}. impart has no advice for this error."
        return job.outcome(
            status="failed",
            artifact=kept,
            fingerprint=None,
            why=without_secrets(" ".join(why.split())),
            seconds=round(watch.seconds, 3),
        )


def _clean_up(request: ZooRequest) -> tuple[int, tuple[str, ...]]:
    """Clean up as the file says; return the bytes that went, and what went wrong."""
    rule = request.zoo.retention
    if not rule.collect:
        return 0, ()
    try:
        report = collect(Store(request.place), grace=timedelta(days=rule.grace_days), history=rule.history, delete=True)
    except ImpartError as error:  # the models are up to date all the same
        return 0, (f"Nothing was cleaned up: {error}",)
    return report.bytes, () if report.complete else ("Not all could be cleaned up yet; the next run goes on.",)


def _entries(zoo: ZooFile) -> tuple[Entry, ...]:
    """Return all entries, with what patterns find in the pattern's place."""
    models: list[Entry] = []
    listed = {place for model in zoo.models if isinstance(model, ZooModel) for place in (model.place, model.base)}
    for model in zoo.models:
        if not isinstance(model, Pattern):
            models.append(model)
            continue
        found = patiently(f"look for {model.find}", lambda: find_models(model.find))  # noqa: B023
        listed.add(model.base)
        kept = {
            name: place
            for name, place in found.items()
            if place not in listed and not any(fnmatchcase(name, one) for one in model.without)
        }
        models += [model.model(name, place) for name, place in kept.items()]
    entries = (*models, *zoo.merges, *zoo.searches)
    require_unique([entry.name for entry in entries])
    for entry in entries:
        require_ref_name(f"{entry.name}@{zoo.label}")
    return entries


def _check_gates(zoo: ZooFile, entries: Iterable[Entry]) -> None:
    """Check that the tasks of all gates exist."""
    gates = [zoo.gate_of(entry) for entry in entries if isinstance(entry, ZooModel)]
    gates += [merge.gate for merge in zoo.merges]
    code = "sandboxed" if zoo.run_code else "never"
    for gate in {gate.model_dump_json(): gate for gate in gates if gate.tasks}.values():
        names, options = named_tasks(tuple(gate.tasks), gate.measuring)
        check_request(names, gate.limit, options, code)  # type: ignore[arg-type]


def _job(request: ZooRequest, entry: Entry) -> EntryJob:
    """Return an entry as it is to be worked on."""
    zoo, gate = request.zoo, Gate()
    steps: tuple[Step, ...] = ()
    model = entry if isinstance(entry, ZooModel) else None
    stages: tuple[MergeFile, ...] = ()
    search: SearchFile | None = None
    if model:
        steps, gate = zoo.recipes[model.recipe].steps, zoo.gate_of(model)
    elif isinstance(entry, ZooMerge):
        gate = entry.gate
        stages = read_merge_file(Path(entry.merge)) if isinstance(entry.merge, str) else (merge_of(entry.merge),)
        if stages[-1].impart.compress is None:
            raise ConfigError(
                f"The merge {entry.name} would be lost: the zoo keeps deltas. Say how it is compressed, as "
                "impart: {compress: {cr: 16}} in its file."
            )
    elif isinstance(entry, ZooSearch):
        search = read_search_file(entry.search) if isinstance(entry.search, str) else parse_search(entry.search)
    return EntryJob(
        name=entry.name,
        ref=f"{entry.name}@{zoo.label}",
        store=request.place,
        device=zoo.device,
        workers=zoo.workers,
        run_code=zoo.run_code,
        trust=request.trust,
        owner=entry.owner,
        tags=entry.tags,
        gate=gate,
        steps=steps,
        model=model,
        stages=stages,
        search=search,
    )


def _wanted(only: Sequence[str], jobs: Sequence[EntryJob]) -> set[str]:
    """Return the names of the entries that are asked for."""
    if not only:
        return {job.name for job in jobs}
    wanted: set[str] = set()
    for text in only:
        key, colon, value = text.partition(":")
        if colon and key == "tag":
            found = {job.name for job in jobs if value in job.tags}
        elif colon and key == "owner":
            found = {job.name for job in jobs if value == job.owner}
        else:
            found = {job.name for job in jobs if fnmatchcase(job.name, text)}
        if not found:
            raise unknown_name("entry", text, [job.name for job in jobs])
        wanted |= found
    return wanted


def _left_out(job: EntryJob, before: Outcome | None) -> Outcome:
    """Return the outcome of an entry that is not asked for: what is known of it from before."""
    if before is None:
        return job.outcome(status="left out", fingerprint=None)
    return before.model_copy(update={"status": "left out"})


def _unchanged(store: Store, jobs: Sequence[EntryJob], before: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Return the outcomes of entries that nothing has changed for, and whose artifacts and names are in place."""
    same = {
        job.name: before[job.name]
        for job in jobs
        if job.fingerprint and job.name in before and before[job.name].fingerprint == job.fingerprint
    }
    if not same:
        return {}
    refs, present = all_refs(store), set(store.objects.names("artifacts"))
    ids = {outcome.artifact for outcome in same.values() if outcome.artifact}
    parts = {
        artifact: {pointer.id for pointer in manifest.content.pointers()}
        for artifact, manifest in store.manifests(sorted(ids))
        if manifest is not None
    }
    unchanged = {}
    for name, outcome in same.items():
        in_place = refs.get(outcome.ref) == outcome.artifact
        whole = outcome.artifact is None or parts.get(outcome.artifact, {""}) <= present
        if in_place and whole:
            # Of what came to an end, only what was refused has a reason.
            unchanged[name] = outcome.model_copy(update={"status": "refused" if outcome.why else "unchanged"})
    return unchanged
