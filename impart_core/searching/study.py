"""The study: suggest, score, tell, until the budget is used up. The same file and scores give the same study.

Nothing of it is kept while it runs: one that was killed is begun again, and finds in its ledger what it had scored.
"""

import time
from collections.abc import Callable, Sequence

from impart_core.searching.file import SearchFile
from impart_core.searching.ledger import Ledger
from impart_core.searching.objective import BYTES
from impart_core.searching.paired import Difference, difference
from impart_core.searching.race import Runner, run_race
from impart_core.searching.result import Study, Trial
from impart_core.searching.samplers import importance_of
from impart_core.searching.suggest import Suggester
from impart_core.searching.warm import first_stage

Progress = Callable[[str, int, int, str], None]  # stage, done, total, what


def run_study(
    file: SearchFile,
    ledger: Ledger,
    available: int,
    progress: Progress | None = None,
    warm: Sequence[Trial] = (),
) -> Study:
    """Search, and return what was found; how much was evaluated for it stands in the ledger's tally.

    Args:
        file: the search.
        ledger: has the scores of candidates, or gets them.
        available: how many validation items the task with the fewest has.
        progress: called with `search`, trials done, their number (0 where only the sampler or a clock ends it), and
            the best so far.
        warm: trials of another study that tell CMA-ES where to begin: see `fitting_trials`.

    Raises:
        ConfigError: a task has fewer items than asked for, or lacks the metric that is asked for.
    """
    began = time.perf_counter()
    tell = progress or (lambda *_: None)
    try:
        spent: Sequence[Trial] = ()
        if (stage := first_stage(file, available)) is not None:
            warm = spent = _Search(stage, ledger, available, lambda *told: tell("warm start", *told[1:])).run().trials
        return _Search(file, ledger, available, tell, warm, spent).run()
    finally:
        ledger.tally.seconds += time.perf_counter() - began


class _Search:
    """A search under way; `warm` are trials that tell it where to begin, `spent` those that its budget paid for."""

    def __init__(
        self,
        file: SearchFile,
        ledger: Ledger,
        available: int,
        progress: Progress,
        warm: Sequence[Trial] = (),
        spent: Sequence[Trial] = (),
    ) -> None:
        self._file, self._ledger, self._warm, self._progress = file, ledger, tuple(warm), progress
        self._rungs = file.rungs(available)
        self._suggester = Suggester(file, warm)
        self._runners: list[Runner] = []
        self._trials: list[Trial] = []
        self._items = sum(trial.rungs[-1].items for trial in spent if trial.rungs) * len(file.tasks)
        self._seconds = sum(trial.seconds for trial in spent) / file.parallel

    def run(self) -> Study:
        total = self._file.budget.trials or self._file.space.size or 0
        self._progress("search", 0, total, "")
        while (stopped := self._used_up()) is None:
            suggestions = self._suggester.ask(self._room())
            if not suggestions:
                stopped = "every candidate was tried"
                break
            first = len(self._runners)
            batch = [Runner(first + number, one.candidate) for number, one in enumerate(suggestions)]
            self._race(batch)
            best = self._best()
            for suggestion, trial in zip(suggestions, self._trials[first:], strict=True):
                self._suggester.tell(suggestion, trial)
            self._progress("search", len(self._trials), total, "" if best is None else self._said(best))
        return self._study(stopped)

    def _race(self, batch: Sequence[Runner]) -> None:
        """Score new candidates, and record what became of them."""
        file = self._file
        front = [self._runners[number] for number in self._front()]
        seconds = run_race(batch, front, self._rungs, file, self._ledger, file.significance)
        self._seconds += seconds
        self._items += sum(one.items for one in batch) * len(file.tasks)
        self._runners += batch
        self._trials += [one.trial(file) for one in batch]
        best = self._best()
        reference = None if best is None else self._runners[best]
        self._trials[-len(batch) :] = [one.trial(file, reference) for one in batch]

    def _used_up(self) -> str | None:
        """Return which part of the budget is used up, None where some is left of all."""
        budget = self._file.budget
        if budget.trials is not None and len(self._trials) >= budget.trials:
            return f"{budget.trials} trials were tried"
        if budget.items is not None and self._items + self._rungs[0][1] * len(self._file.tasks) > budget.items:
            return f"{self._items:,} of {budget.items:,} items were used"
        # The default candidate is tried whatever the warm start took: a study without trials tells nothing.
        if budget.minutes is not None and self._trials and self._seconds >= budget.minutes * 60:
            return f"{budget.minutes:g} minutes of evaluation were used"
        return None

    def _room(self) -> int:
        """Return how many candidates may be tried at once: as many as asked for, or what the budget leaves."""
        room, budget = self._file.parallel, self._file.budget
        if budget.trials is not None:
            room = min(room, budget.trials - len(self._trials))
        if budget.items is not None:
            cost = self._rungs[0][1] * len(self._file.tasks)
            room = min(room, max(1, (budget.items - self._items) // cost))
        return room

    def _able(self) -> list[Trial]:
        return [trial for trial in self._trials if trial.state == "complete" and trial.feasible]

    def _ranked(self, trial: Trial) -> tuple[float, ...]:
        """Return a trial's objectives, more being better of each."""
        return tuple(self._file.upward(one, trial.quantities[one.name]) for one in self._file.objectives)

    def _best(self) -> int | None:
        """Return the number of the best trial, None where none is complete and keeps the constraints."""
        able = self._able()
        return max(able, key=lambda trial: (*self._ranked(trial), -trial.number)).number if able else None

    def _front(self) -> tuple[int, ...]:
        """Return the trials that none is better than by every objective; of equal ones the earliest."""
        able = [(trial.number, self._ranked(trial)) for trial in self._able()]
        return tuple(
            number
            for number, own in able
            if not any(
                all(a >= b for a, b in zip(theirs, own, strict=True)) and (theirs != own or other < number)
                for other, theirs in able
                if other != number
            )
        )

    def _said(self, best: int) -> str:
        values = self._trials[best].quantities
        return f"best {best}: " + ", ".join(f"{one.name} {values[one.name]:.4g}" for one in self._file.objectives)

    def _study(self, stopped: str) -> Study:
        file, best = self._file, self._best()
        return Study(
            objectives=file.goals,
            trials=tuple(self._trials),
            best=best,
            front=self._front(),
            margin=None if best is None else self._margin(best),
            importance=importance_of(file, self._trials),
            stopped=stopped,
            warm=self._warm,
        )

    def _margin(self, best: int) -> Difference | None:
        """Return how much the best trial is above the default, on all items that both were scored on."""
        objective, default = self._file.objectives[0], self._runners[0]
        if default.state == "failed" or objective.of == BYTES:
            return None
        both = (self._runners[best], default)
        return difference(*(one.contributions(self._file, objective, default.items) for one in both))
