"""The zoo brought up to date: every entry that something has changed for, failures apart from each other."""

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event
from typing import Any

from impart_core.artifacts.zoo_run import last_zoo_run, publish_zoo_run, ref_of
from impart_core.base.errors import ConfigError, ImpartError
from impart_core.base.numerics import resolve_device
from impart_core.base.retry import patiently, recording
from impart_core.base.text import without_secrets
from impart_core.checkpoint.model import load_transformers
from impart_core.engine.executor import Executor, Progress
from impart_core.engine.zoo_entry import EntryJob, bytes_of, work_on
from impart_core.engine.zoo_inputs import Inputs, places_of
from impart_core.engine.zoo_jobs import ZooRequest, check_gates, entries_of, job_of, wanted_of
from impart_core.lineage.events import public_url
from impart_core.storage.open import require_plain_url
from impart_core.store.catalog import entry_of, note
from impart_core.store.gc import collect
from impart_core.store.manifest import MANIFEST
from impart_core.store.names import get_ref, require_ref_name
from impart_core.store.provenance import Stopwatch
from impart_core.store.store import Store
from impart_core.zoo.forecast import key_of
from impart_core.zoo.record import Kind, Outcome, ZooRun

logger = logging.getLogger(__name__)
Each = Callable[[EntryJob, Progress], Outcome]


@dataclass(frozen=True)
class CheckedZoo:
    """A zoo that can be brought up to date.

    Attributes:
        jobs: its entries, in the order in which they are worked on.
        known: what is known of each without work, by name: those that are unchanged or left out.
        before: what became of each entry in the zoo's last run, by name.
        last: the id of that run.
        trouble: what patterns do not find, in sentences.
    """

    jobs: tuple[EntryJob, ...]
    known: Mapping[str, Outcome]
    before: Mapping[str, Outcome]
    last: str | None
    trouble: tuple[str, ...] = ()

    @property
    def work(self) -> tuple[EntryJob, ...]:
        """The entries that have to be worked on."""
        return tuple(job for job in self.jobs if job.name not in self.known)


def check_zoo(request: ZooRequest, *, writing: bool = True) -> CheckedZoo:
    """Check a zoo without doing any of its work, and find what has to be done.

    Args:
        request: the zoo.
        writing: whether the store has to be one that can be written.

    Raises:
        ImpartError: something in the file cannot be carried out, or a base is another one than at the last run.
    """
    zoo, store = request.zoo, Store(request.place)
    resolve_device(zoo.device_here(zoo.device))
    if writing:
        patiently("try the store", store.require_writable)
    require_ref_name(ref_of(zoo.zoo))
    entries, trouble = entries_of(zoo)
    check_gates(zoo, entries)
    last = last_zoo_run(store, zoo.zoo)
    before = {outcome.name: outcome for outcome in last.outcomes} if last else {}
    inputs = Inputs(store)
    plain = [job_of(request, entry) for entry in entries]
    for place in (place for job in plain for place in places_of(job) if "://" in place):
        require_plain_url(place, "model", ConfigError)  # what is written down from here on is read by others
    jobs = tuple(_knowing(inputs.stamped(job), before.get(job.name)) for job in plain)
    inputs.require_same_bases(before.values())
    wanted = wanted_of(request.only, jobs)
    known = {
        job.name: _kept(store, job, inputs.refs, before.get(job.name), status="left out")
        for job in jobs
        if job.name not in wanted
    }
    if not request.again:
        known |= _unchanged(store, inputs.refs, [job for job in jobs if job.name in wanted], before)
    return CheckedZoo(jobs, known, before, last.run if last else None, trouble)


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
        checked = checked or patiently("check the zoo", lambda: check_zoo(request))
        outcomes = _outcomes(
            request, checked, each or (lambda job, tick: work_on(job, executor, tick, run_id)), progress
        )
        outcomes = _with_later(request, checked, outcomes)
        collected, trouble = _clean_up(request)
        run = ZooRun(
            zoo=request.zoo.zoo,
            run=run_id or uuid.uuid4().hex,
            started=started.isoformat(timespec="seconds"),
            seconds=round(watch.seconds, 3),
            store=public_url(request.place),
            outcomes=tuple(outcomes[job.name] for job in checked.jobs),
            collected=collected,
            trouble=(*checked.trouble, *trouble),
        )
        store = Store(request.place)
        manifest = patiently("publish the run", lambda: publish_zoo_run(store, run, watch))
        patiently("enter the run", lambda: note(store, [entry_of(manifest)]))
        return run


def _with_later(request: ZooRequest, checked: CheckedZoo, outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
    """Return outcomes, those that were left out as another run, which ended meanwhile, has them."""
    last = patiently("look for the last run", lambda: last_zoo_run(Store(request.place), request.zoo.zoo))
    later = {one.name: one for one in last.outcomes} if last and last.run != checked.last else {}
    return {
        name: later[name].model_copy(update={"status": "left out"})
        if outcome.status == "left out" and name in later
        else outcome
        for name, outcome in outcomes.items()
    }


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
        return _attempt(each, job, tick, before.get(job.name))

    if at_once == 1:  # in this thread, so that an interrupt reaches the work itself
        yield from map(attempt, jobs)
        return
    if jobs:
        load_transformers()
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
        known = {name: checked.known[name] for name in left_out}
        known |= patiently("see what has changed", lambda: _unchanged(store, inputs.refs, again, checked.before))
    else:
        known = dict(checked.known)
    return (
        {job.name: known[job.name] for job in jobs if job.name in known},
        [job for job in jobs if job.name not in known],
    )


def _attempt(each: Each, job: EntryJob, progress: Progress, before: Outcome | None) -> Outcome:
    """Work on an entry; what goes wrong is told of it alone."""
    watch = Stopwatch()
    try:
        return each(job, progress)
    except Exception as error:
        ours = isinstance(error, ImpartError)
        if not ours:
            logger.exception("The entry %s failed", job.name)
        why = str(error) if ours else f"{type(error).__name__}: {error}. impart has no advice for this error."
        told = {"why": without_secrets(" ".join(why.split())), "seconds": round(watch.seconds, 3)}
        told |= {"forecasts": job.forecasts}
        store = Store(job.store)
        try:
            refs = {job.ref: kept} if (kept := get_ref(store, job.ref)) else {}
        except ImpartError:  # the store itself may be what is wrong
            refs = {job.ref: before.artifact} if before and before.artifact else {}
        return _kept(store, job, refs, before, status="failed", attempts=(), fingerprint=None, **told)


def _knowing(job: EntryJob, before: Outcome | None) -> EntryJob:
    """Return an entry with what was foretold of its steps earlier, where that still holds."""
    keys = {key_of(job.sides, step.config) for step in job.steps}
    same = (one for one in (before.forecasts if before else ()) if one.key and one.key in keys)
    known = tuple(one.model_copy(update={"passed_over": False}) for one in same)  # which only a run decides
    return job.model_copy(update={"forecasts": known})


def _clean_up(request: ZooRequest) -> tuple[int, tuple[str, ...]]:
    """Clean up as the file says; return the bytes that went, and what went wrong."""
    rule = request.zoo.retention
    if not rule.collect:
        return 0, ()
    try:
        report = collect(Store(request.place), rule, delete=True)
    except Exception as error:  # the models are up to date all the same
        return 0, (f"Nothing was cleaned up: {error}",)
    return report.bytes, () if report.complete else ("Not all could be cleaned up yet; the next run goes on.",)


def _kept(store: Store, job: EntryJob, refs: Mapping[str, str], before: Outcome | None, **about: Any) -> Outcome:
    """Return the outcome of an entry whose name stays where it is: what is known of that, and what is told besides."""
    artifact = refs.get(job.ref)
    if before is None or before.artifact != artifact:  # somebody else moved the name
        size = bytes_of(store, artifact)
        return job.outcome(
            **{"artifact": artifact, "bytes_after": size, "fingerprint": None, "base_listing": None, **about}
        )
    return before.model_copy(update={"owner": job.owner, "tags": job.tags, **about})


def _unchanged(
    store: Store, refs: Mapping[str, str], jobs: Sequence[EntryJob], before: Mapping[str, Outcome]
) -> dict[str, Outcome]:
    """Return the outcomes of entries that nothing has changed for, and whose artifacts and names are in place."""
    same = {
        job.name: before[job.name]
        for job in jobs
        if job.fingerprint and job.name in before and before[job.name].fingerprint == job.fingerprint
    }
    if not same:
        return {}
    sizes = _sizes(store)
    ids = {outcome.artifact for outcome in same.values() if outcome.artifact}
    whole = {
        artifact
        for artifact, manifest in store.manifests(sorted(ids))
        if manifest is not None
        and sizes.get(artifact, 0) >= manifest.nbytes
        # A part that was made again may have a manifest some bytes shorter: it is looked at more closely.
        and all(
            sizes.get(part.id, 0) >= part.bytes or store.lookup(part.id) is not None
            for part in manifest.content.pointers()
        )
    }
    unchanged = {}
    for name, outcome in same.items():
        if refs.get(outcome.ref) == outcome.artifact and (outcome.artifact is None or outcome.artifact in whole):
            # Of what came to an end, only what was refused has a reason.
            unchanged[name] = outcome.model_copy(update={"status": "refused" if outcome.why else "unchanged"})
    return unchanged


def _sizes(store: Store) -> dict[str, int]:
    """Return the bytes that lie in a store under each artifact that has a manifest, from one listing."""
    sizes: dict[str, int] = {}
    published: set[str] = set()
    for path, info in store.objects.find("artifacts").items():
        _, artifact, name = path.split("/", 2)
        sizes[artifact] = sizes.get(artifact, 0) + info.size
        if name == MANIFEST:
            published.add(artifact)
    return {artifact: size for artifact, size in sizes.items() if artifact in published}
