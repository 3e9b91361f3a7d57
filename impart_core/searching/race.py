"""A race: candidates on growing numbers of the same items, each until it is worse than another by more than chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from impart_core.searching.ledger import Failure, Ledger, Question, Score
from impart_core.searching.objective import BYTES, Aims, Objective, value_of
from impart_core.searching.paired import Contributions, difference, is_below
from impart_core.searching.result import Rung, State, Trial
from impart_core.searching.space import Candidate

Rungs = Sequence[tuple[int, int]]


@dataclass
class Runner:
    """A candidate in a race.

    Attributes:
        number: its number in the search.
        candidate: the candidate.
        values: by task and metric, the value of each item so far.
        bytes: what it takes up in a store.
        state: how far it got; None: it is running.
        why: why it failed or was pruned.
        seconds: how long it took so far.
        rungs: what it scored, rung by rung.
    """

    number: int
    candidate: Candidate
    values: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    bytes: int | None = None
    state: State | None = None
    why: str | None = None
    seconds: float = 0.0
    rungs: list[Rung] = field(default_factory=list)

    @property
    def items(self) -> int:
        """How many items of each task it was scored on."""
        return self.rungs[-1].items if self.rungs else 0

    def add(self, scores: Mapping[str, Score]) -> None:
        """Add the scores of the next items."""
        for task, score in scores.items():
            known = self.values.setdefault(task, {})
            for metric, values in score.metrics.items():
                more = np.asarray(values, dtype=np.float64)
                known[metric] = np.concatenate([known[metric], more]) if metric in known else more
            self.bytes = score.bytes if score.bytes is not None else self.bytes
            self.seconds += score.seconds
        means = {
            task: {name: float(each.mean()) for name, each in metrics.items()} for task, metrics in self.values.items()
        }
        first = next(iter(self.values.values()))
        self.rungs.append(Rung(items=len(next(iter(first.values()))), metrics=means))

    def fail(self, why: str) -> None:
        """End as failed."""
        self.state, self.why = "failed", why

    def contributions(self, aims: Aims, objective: Objective, items: int | None = None) -> Contributions:
        """Return what each of its first items contributes to a quantity other than bytes; None: of all so far."""
        cut = {task: {name: each[:items] for name, each in metrics.items()} for task, metrics in self.values.items()}
        return objective.contributions(cut, aims.tasks)

    def quantity(self, aims: Aims, objective: Objective, items: int | None = None) -> float:
        """Return a quantity over its first items; None: over all so far."""
        if objective.of == BYTES:
            assert self.bytes is not None
            return float(self.bytes)
        return value_of(self.contributions(aims, objective, items))

    def is_feasible(self, aims: Aims) -> bool:
        """Return whether it keeps the constraints on the items so far."""
        values = {one.name: self.quantity(aims, one) for one in aims.quantities}
        return all(excess <= 0 for excess in aims.excesses(values).values())

    def trial(self, aims: Aims, best: "Runner | None" = None) -> Trial:
        """Return the record of what became of it.

        Args:
            aims: what the search looks for.
            best: the best candidate that was scored on all items, from which a pruned one is estimated.
        """
        assert self.state is not None
        quantities: dict[str, float] = {}
        stderrs: dict[str, float] = {}
        if self.state != "failed":
            for one in aims.quantities:
                quantities[one.name] = self.quantity(aims, one)
                if one.of == BYTES:
                    continue
                own = self.contributions(aims, one)
                if (stderr := difference(own, {}).stderr) is not None:
                    stderrs[one.name] = stderr
                if self.state == "pruned" and best is not None:  # its items may be easier than the rest
                    quantities[one.name] += best.quantity(aims, one) - best.quantity(aims, one, self.items)
        kept = aims.excesses(quantities).values() if quantities else ()
        return Trial(
            number=self.number,
            values=dict(self.candidate.values),
            digest=self.candidate.digest,
            state=self.state,
            quantities=quantities,
            stderrs=stderrs,
            feasible=self.state != "failed" and all(excess <= 0 for excess in kept),
            rungs=tuple(self.rungs),
            bytes=self.bytes,
            why=self.why,
            seconds=round(self.seconds, 3),
        )


def run_race(
    batch: Sequence[Runner], front: Sequence[Runner], rungs: Rungs, aims: Aims, ledger: Ledger, significance: float
) -> float:
    """Score new candidates rung by rung, until each is complete, pruned or failed.

    Args:
        batch: the candidates.
        front: those before them that none was better than, scored on all items.
        rungs: ranges of items.
        aims: what the search looks for.
        ledger: has the scores, or gets them.
        significance: of the test by which one is worse.

    Returns:
        The seconds that it took, as the ledger recorded them, the candidates of a rung at once.
    """
    seconds = 0.0
    for rung, (start, stop) in enumerate(rungs):
        running = [one for one in batch if one.state is None]
        if not running:
            break
        questions = [Question(one.candidate, tuple(aims.tasks), start, stop) for one in running]
        before = [one.seconds for one in running]
        for one, answer in zip(running, ledger.ask(questions), strict=True):
            _take(one, answer, aims)
        seconds += max(one.seconds - earlier for one, earlier in zip(running, before, strict=True))
        scored = [one for one in running if one.state is None]
        if rung == len(rungs) - 1:
            for one in scored:
                one.state = "complete"
        else:
            _prune(scored, [*front, *scored], stop, aims, significance)
    return seconds


def _take(one: Runner, answer: Mapping[str, Score] | Failure, aims: Aims) -> None:
    if isinstance(answer, Failure):
        one.seconds += answer.seconds
        one.fail(answer.why)
        return
    one.add(answer)
    if aims.counts_bytes and one.bytes is None:
        one.fail("nobody counted its bytes")


def _prune(running: Sequence[Runner], others: Sequence[Runner], items: int, aims: Aims, significance: float) -> None:
    """End those that another candidate is better than, by every objective and by more than chance."""
    able = [other for other in others if other.is_feasible(aims)]
    if able and len(aims.objectives) == 1:  # one test against the best, and not one against each
        objective = aims.objectives[0]
        able = [max(able, key=lambda other: aims.upward(objective, other.quantity(aims, objective, items)))]
    for one in running:
        for other in able:
            if other is not one and _is_worse(one, other, items, aims, significance):
                one.state, one.why = "pruned", f"worse than trial {other.number} on {items} items"
                break


def _is_worse(one: Runner, other: Runner, items: int, aims: Aims, significance: float) -> bool:
    for objective in aims.objectives:
        if objective.of == BYTES:
            if (other.bytes or 0) > (one.bytes or 0):
                return False
            continue
        own, theirs = (each.contributions(aims, objective, items) for each in (one, other))
        if objective.minimizes(aims.tasks):
            own, theirs = theirs, own
        if not is_below(own, theirs, significance):
            return False
    return True
