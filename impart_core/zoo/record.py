"""What a run of the zoo did with each of its entries."""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from impart_core.base.settings import Frozen
from impart_core.zoo.forecast import Forecast
from impart_core.zoo.gate import Comparison

Kind = Literal["model", "merge", "search"]
Status = Literal["promoted", "unchanged", "refused", "failed", "left out"]


class Attempt(Frozen):
    """One step of a recipe.

    Attributes:
        step: what it is called.
        artifact: id of the delta.
        bytes: of all of it.
        cr_model: bytes of the fine-tuned model over those of the delta.
        cached: whether the delta was there.
        gate: how it does on each task; empty: nothing was measured.
        passed: whether it may be promoted.
        why: why nothing had to be measured, where that is so.
    """

    step: str
    artifact: str
    bytes: int
    cr_model: float
    cached: bool
    gate: tuple[Comparison, ...] = ()
    passed: bool
    why: str = Field(default="", exclude_if=lambda why: not why)


class Outcome(Frozen):
    """What became of an entry.

    Attributes:
        name: the entry's name.
        kind: what it is.
        status: `promoted`: it passed its gate, and its name points to the artifact; `unchanged`: nothing it depends on
            has changed since a run that came to an end; `refused`: no step passed the gate, and the name stays where
            it was; `failed`: an error, and the name stays; `left out`: not asked for.
        ref: the name that it is published under.
        artifact: id of what the name points to after the run; None: nothing.
        owner: whose it is.
        tags: its tags.
        why: what went wrong, or why it was refused, and what to do.
        attempts: what was tried.
        forecasts: what steps were foretold to keep: those that were passed over, others, and those of earlier runs.
        bytes_before: of the fine-tuned checkpoint; 0: unknown.
        bytes_after: of what the name points to; 0: unknown.
        seconds: how long it took, when it was last worked on.
        peak_rss_bytes: the most memory that the process had held by then.
        fingerprint: a digest of all that it depends on, where it came to an end: while it is the same, nothing has to
            be done again. None: it did not, or what it depends on cannot be told without reading weights.
        base: where its base lies.
        base_id: id of the base checkpoint by content, so that another one under the same name is noticed.
        base_listing: a digest of the base's files by name, size and stamp: while it is the same, so is the content.
    """

    name: str
    kind: Kind
    status: Status
    ref: str
    artifact: str | None = None
    owner: str | None = None
    tags: tuple[str, ...] = ()
    why: str = ""
    attempts: tuple[Attempt, ...] = ()
    forecasts: tuple[Forecast, ...] = Field(default=(), exclude_if=lambda forecasts: not forecasts)
    bytes_before: int = 0
    bytes_after: int = 0
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    fingerprint: str | None = None
    base: str | None = None
    base_id: str | None = None
    base_listing: str | None = None


class ZooRun(Frozen):
    """A run of the zoo.

    Attributes:
        zoo: the zoo's name.
        run: id of the run.
        started: when it began (UTC, ISO 8601).
        seconds: how long it took.
        store: the store, without credentials.
        outcomes: of all entries, in the file's order.
        collected: bytes that were cleaned up at its end.
        trouble: sentences on what else went wrong, such as cleaning up.
    """

    zoo: str
    run: str
    started: str
    seconds: float
    store: str
    outcomes: tuple[Outcome, ...]
    collected: int = 0
    trouble: tuple[str, ...] = ()

    def with_status(self, *wanted: Status) -> tuple[Outcome, ...]:
        """Return the outcomes of a status."""
        return tuple(outcome for outcome in self.outcomes if outcome.status in wanted)

    @property
    def counts(self) -> dict[str, int]:
        """The number of entries by status, those that there are."""
        return counts_of(self.outcomes)


class Counts(Frozen):
    """A run of the zoo in numbers.

    Attributes:
        entries: by status.
        bytes_before: of the fine-tuned checkpoints of all models that have a promoted delta.
        bytes_after: of these deltas.
    """

    entries: dict[str, int] = Field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0

    @classmethod
    def of(cls, run: ZooRun) -> "Counts":
        """Return a run's numbers."""
        kept = [outcome for outcome in run.outcomes if outcome.artifact and outcome.bytes_before]
        return cls(
            entries=run.counts,
            bytes_before=sum(outcome.bytes_before for outcome in kept),
            bytes_after=sum(outcome.bytes_after for outcome in kept),
        )


def counts_of(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Return the number of outcomes by status, those that there are."""
    found: dict[str, int] = {}
    for outcome in outcomes:
        found[outcome.status] = found.get(outcome.status, 0) + 1
    return dict(sorted(found.items()))
