"""What a search found: every trial, the best of them, and how it compares with the default."""

from typing import Any, Literal

from pydantic import Field

from impart_core.base.settings import Frozen
from impart_core.searching.paired import Difference

State = Literal["complete", "pruned", "failed"]


class Rung(Frozen):
    """What a candidate scored on the items from the first up to a rung's last.

    Attributes:
        items: how many items of each task.
        metrics: by task and metric, the mean over them.
    """

    items: int
    metrics: dict[str, dict[str, float]]


class Trial(Frozen):
    """A candidate that was tried.

    Attributes:
        number: its place in the order of the search, from 0: the default candidate.
        values: value of each parameter.
        digest: what the candidate is known by.
        state: `complete`: scored on all items; `pruned`: worse than another one by more than chance on the first of
            them; `failed`.
        quantities: value of each objective and of what else is bounded. Of a pruned one those of the best candidate
            plus the difference from it on the items that both were scored on.
        stderrs: standard error of each that is a mean over items.
        feasible: whether it keeps all constraints.
        rungs: what it scored, rung by rung.
        bytes: what it takes up in a store.
        why: why it failed, or which trial it was worse than.
        seconds: how long it took to make and to score, as the ledger has it.
    """

    number: int
    values: dict[str, Any]
    digest: str
    state: State
    quantities: dict[str, float] = Field(default_factory=dict)
    stderrs: dict[str, float] = Field(default_factory=dict)
    feasible: bool = False
    rungs: tuple[Rung, ...] = ()
    bytes: int | None = None
    why: str | None = None
    seconds: float = 0.0


class Study(Frozen):
    """What a search found.

    Attributes:
        objectives: name of each objective and which way is better, the one that decides first.
        trials: all candidates in the order in which they were tried; the first is the default.
        best: number of the complete trial that keeps the constraints and is best by the first objective, among equals
            by the next, then the earliest; None: there is none.
        front: numbers of those that none is better than by every objective (Pareto front).
        margin: how much the best is above the default by the first objective, on validation items, on which the best
            was chosen: it flatters.
        importance: share of each parameter in the variance of the first objective (PED-ANOVA, arXiv 2304.10255).
        stopped: why it ended.
        warm: trials of the cheaper search that told it where to begin.
    """

    objectives: dict[str, Literal["maximize", "minimize"]]
    trials: tuple[Trial, ...]
    best: int | None
    front: tuple[int, ...]
    margin: Difference | None
    importance: dict[str, float]
    stopped: str
    warm: tuple[Trial, ...] = ()

    @property
    def winner(self) -> Trial | None:
        """The best trial."""
        return None if self.best is None else self.trials[self.best]
