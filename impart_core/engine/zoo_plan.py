"""What a run of the zoo would take, from headers and from what earlier runs took."""

import statistics
from collections.abc import Iterable

from impart_core.base.errors import ImpartError
from impart_core.base.numerics import default_workers
from impart_core.base.settings import Frozen
from impart_core.base.units import human_bytes, human_seconds
from impart_core.engine.plan import make_plan
from impart_core.engine.preflight import open_sides
from impart_core.engine.zoo import CheckedZoo
from impart_core.engine.zoo_entry import EntryJob
from impart_core.engine.zoo_jobs import ZooRequest
from impart_core.zoo.forecast import Forecast, told
from impart_core.zoo.record import Outcome


class PlannedEntry(Frozen):
    """What an entry would take.

    Attributes:
        name: its name.
        kind: what it is.
        work: whether it would be worked on; else nothing has changed for it, or it is not asked for.
        why: why it cannot be worked on, where that is known.
        steps: what would be tried, the first of which may do.
        passed_over: steps that would not be, as what was foretold in an earlier run says.
        foretelling: steps of which it would be foretold first what they keep, and which may then be passed over.
        bytes_before: of the fine-tuned checkpoint; None: not known.
        bytes_at_most: of its delta by the first of these steps, at most.
        peak_bytes: memory that the blocks worked on at once take.
        seconds: how long it will take, from earlier runs: its own last time, else by its bytes from other models'.
    """

    name: str
    kind: str
    work: bool
    why: str = ""
    steps: tuple[str, ...] = ()
    passed_over: tuple[Forecast, ...] = ()
    foretelling: tuple[str, ...] = ()
    bytes_before: int | None = None
    bytes_at_most: int | None = None
    peak_bytes: int | None = None
    seconds: float | None = None


class ZooPlan(Frozen):
    """What a run would do.

    Attributes:
        entries: the entries.
        concurrency: models worked on at once.
        peak_bytes: memory of as many of the models that need the most.
        seconds: how long the run will take, as far as known from earlier ones; None: there was none.
        trouble: what patterns do not find, in sentences.
        next_run: when it is run next by its schedule (ISO 8601, UTC); None: it has none.
    """

    entries: tuple[PlannedEntry, ...]
    concurrency: int
    peak_bytes: int
    seconds: float | None
    trouble: tuple[str, ...] = ()
    next_run: str | None = None

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the entries as a table."""
        columns = ["entry", "kind", "work", "first step", "model", "delta at most", "memory", "time"]
        return columns, [
            [
                one.name,
                one.kind,
                "yes" if one.work else "no",
                one.steps[0] if one.steps and one.work else "",
                *("" if size is None else human_bytes(size) for size in (one.bytes_before, one.bytes_at_most)),
                "" if one.peak_bytes is None else human_bytes(one.peak_bytes),
                "" if one.seconds is None else human_seconds(one.seconds),
            ]
            for one in self.entries
        ]

    def lines(self) -> list[str]:
        """Return what it comes to, in sentences."""
        work = [one for one in self.entries if one.work]
        lines = [f"{one.name}: {one.why}" for one in work if one.why] + list(self.trouble)
        lines += [f"{one.name}: {told(one.passed_over)}" for one in work if one.passed_over]
        lines.append(f"{len(work)} of {len(self.entries)} entries would be worked on, {self.concurrency} at once.")
        if foretelling := sum(bool(one.foretelling) for one in work):
            lines.append(
                f"For {foretelling} of them some steps would be foretold first, and passed over where that is clearly "
                "less than foretold_at_least."
            )
        if self.peak_bytes:
            lines.append(f"Blocks take up to {human_bytes(self.peak_bytes)} of memory, evaluations not counted.")
        if work and self.seconds is not None:
            lines.append(f"It would take about {human_seconds(self.seconds)}, as earlier runs did.")
        elif work:
            lines.append("No earlier run tells how long it would take.")
        if self.next_run:
            lines.append(f"By its schedule, once deployed, it is run next at {self.next_run}.")
        return lines


def plan_zoo(request: ZooRequest, checked: CheckedZoo) -> ZooPlan:
    """Return what a run of a checked zoo would do.

    Raises:
        ImpartError: the store cannot be read. What is wrong with a single model is told of it.
    """
    work = {job.name for job in checked.work}
    rate = _seconds_a_byte(checked.before.values())
    entries = tuple(
        _entry(job, request.zoo.workers or default_workers(), checked.before.get(job.name), rate)
        if job.name in work
        else PlannedEntry(name=job.name, kind=job.kind, work=False)
        for job in checked.jobs
    )
    times = [one.seconds for one in entries if one.work]
    known = [seconds for seconds in times if seconds is not None]
    concurrency, next_run = request.zoo.concurrency, request.zoo.next_run()
    return ZooPlan(
        entries=entries,
        concurrency=concurrency,
        peak_bytes=sum(sorted((one.peak_bytes or 0 for one in entries), reverse=True)[:concurrency]),
        seconds=sum(known) / concurrency if known and len(known) == len(times) else None,
        trouble=checked.trouble,
        next_run=next_run.isoformat(timespec="minutes") if next_run else None,
    )


def _entry(job: EntryJob, workers: int, before: Outcome | None, rate: float | None) -> PlannedEntry:
    """Return what an entry that has to be worked on would take."""
    known = [(step, job.known_forecast(step) if job.foretells(step) else None) for step in job.steps]
    steps = tuple(step for step, forecast in known if not (forecast and forecast.passed_over))
    about = {
        "name": job.name,
        "kind": job.kind,
        "work": True,
        "steps": tuple(step.label for step in steps),
        "passed_over": tuple(forecast for _, forecast in known if forecast and forecast.passed_over),
        "foretelling": tuple(step.label for step, forecast in known if job.foretells(step) and not forecast),
    }
    own = before.seconds if before and before.fingerprint else None
    if job.model is None:
        return PlannedEntry(**about, seconds=own)
    model = job.model
    try:
        base, finetuned = open_sides(model.base, model.place)
        found = make_plan(base, finetuned, steps[0].config, workers)
    except ImpartError as error:
        return PlannedEntry(**about, why=str(error))
    return PlannedEntry(
        **about,
        bytes_before=finetuned.nbytes,
        bytes_at_most=found.bytes,
        peak_bytes=max(found.peak_bytes, found.calibration_bytes, found.sensitivity_bytes, found.distil_bytes),
        seconds=own if own is not None else rate and rate * finetuned.nbytes,
    )


def _seconds_a_byte(before: Iterable[Outcome]) -> float | None:
    """Return how long earlier models took for each byte of theirs, half of them longer."""
    rates = [one.seconds / one.bytes_before for one in before if one.fingerprint and one.bytes_before and one.seconds]
    return statistics.median(rates) if rates else None
