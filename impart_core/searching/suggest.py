"""Suggesting candidates: Optuna's samplers over the space of a search, asked in batches and told in order."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from impart_core.base.numerics import one_thread_per_kernel
from impart_core.searching.file import SearchFile
from impart_core.searching.result import Trial
from impart_core.searching.samplers import (
    coded,
    decoded,
    distributions_of,
    one_thread_of_blas,
    quiet,
    require_optuna,
    sampler_of,
)
from impart_core.searching.space import Candidate
from impart_core.searching.starts import starting_values

if TYPE_CHECKING:
    import optuna

_REPEATS = 5  # suggestions of what was tried before, in a row, after which a candidate is drawn at random
_DRAWS = 200  # drawn at random, in a row, that were all tried before: nothing new is left, or nearly so


@dataclass(frozen=True)
class Suggestion:
    """A candidate that was not tried before, and Optuna's trial of it."""

    candidate: Candidate
    trial: "optuna.Trial"


class Suggester:
    """Suggests candidates, the same ones after the same results: its only state is what it was told, in order."""

    def __init__(self, file: SearchFile, source: Sequence[Trial] = ()) -> None:
        """Begin.

        Args:
            file: the search.
            source: complete trials of a cheaper search, which tell CMA-ES where to begin.

        Raises:
            ConfigError: Optuna is not installed.
        """
        require_optuna()
        import optuna

        self._file, self._space = file, file.space
        self._distributions = distributions_of(file)
        with quiet():
            self._study = optuna.create_study(directions=[*file.goals.values()], sampler=sampler_of(file, source))
        self._queue = deque(starting_values(self._space, file.starts))
        self._grid: Iterator[dict[str, Any]] | None = self._space.grid() if file.sampler.name == "grid" else None
        self._rng = np.random.default_rng([file.seed, len(self._distributions)])
        self._known: dict[str, list[float] | None] = {}  # by digest: what was told; None: nothing yet
        self._worst: list[float] | None = None

    def ask(self, count: int) -> list[Suggestion]:
        """Return candidates that were not suggested before: so many, or fewer where no more are found."""
        suggestions: list[Suggestion] = []
        # Or what it suggests would depend on the number of cores.
        with quiet(), one_thread_per_kernel(), one_thread_of_blas():
            while len(suggestions) < count and (one := self._next()) is not None:
                suggestions.append(one)
        return suggestions

    def tell(self, suggestion: Suggestion, trial: Trial) -> None:
        """Take the result of a candidate. One that failed counts as the worst so far, which keeps the sampler away."""
        values = [trial.quantities[name] for name in self._file.goals] if trial.quantities else None
        if values is not None:
            self._note(values)
        if values is None or (self._file.sampler.name == "cmaes" and not trial.feasible):  # it knows no constraints
            values = self._worst
        if trial.quantities:
            for name, excess in self._file.excesses(trial.quantities).items():
                suggestion.trial.set_constraint(name, excess)
        elif self._file.constraints and values is not None:
            for constraint in self._file.constraints:
                suggestion.trial.set_constraint(constraint.name, 1.0)
        self._known[suggestion.candidate.digest] = values
        self._tell(suggestion.trial, values)

    def _note(self, values: list[float]) -> None:
        """Keep the worst value of each objective so far."""
        worst = self._worst or values
        goals = self._file.goals.values()
        self._worst = [
            (max if goal == "minimize" else min)(pair) for goal, *pair in zip(goals, worst, values, strict=True)
        ]

    def _tell(self, trial: "optuna.Trial", values: list[float] | None) -> None:
        from optuna.trial import TrialState

        with quiet():
            if values is None:
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._study.tell(trial, values)

    def _next(self) -> Suggestion | None:
        """Return a candidate that was not suggested before, None where none is found."""
        size = self._space.size
        if size is not None and len(self._known) >= size:
            return None
        repeats = 0
        while repeats < _REPEATS + _DRAWS:
            values = self._queue.popleft() if self._queue else next(self._grid, None) if self._grid else None
            if values is None and self._grid:
                return None
            if values is None and repeats >= _REPEATS:
                values = self._space.random(self._rng)
            if values is not None:
                candidate = self._space.fill(values)
                if candidate.digest in self._known:
                    repeats += not (self._queue or self._grid)
                    continue
            trial = self._asked(values)
            candidate = self._space.fill(
                {name: decoded(hole, trial.params[name]) for name, hole in self._space.holes.items()}
            )
            if candidate.digest not in self._known:
                self._known[candidate.digest] = None
                return Suggestion(candidate, trial)
            self._tell(trial, self._known[candidate.digest])
            repeats += 1
        return None

    def _asked(self, values: Mapping[str, Any] | None) -> "optuna.Trial":
        if values is not None:
            self._study.enqueue_trial({name: coded(self._space.holes[name], value) for name, value in values.items()})
        return self._study.ask(self._distributions)
