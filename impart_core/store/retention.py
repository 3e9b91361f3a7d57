"""What is kept, by which rule: moves of names, what is young, and what running flows need.

The rules are the same in a zoo file and on the command line. Each only adds to what is kept, so that no order of rules
and no rule alone can lose what another one keeps.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import NamedTuple, Self

from pydantic import Field, model_validator

from impart_core.base.errors import ConfigError, CorruptArtifactError
from impart_core.base.settings import Frozen
from impart_core.store.catalog import CatalogEntry
from impart_core.store.manifest import kind_of
from impart_core.store.refs import Log

IN_FORCE, FITS, HISTORY, RECENT, YOUNG, NEW, PINNED = range(7)  # the rules, in the order in which they are told


class Rules(Frozen):
    """What is kept beside what names point to and what running flows need.

    Attributes:
        history: of each name's moves, so many from the last.
        history_days: the moves that were in force within so many days. Where neither is given, all moves count.
        keep: patterns with `*` of names of which all moves count.
        grace_days: whatever was written within so many days.
    """

    history: int | None = Field(default=None, ge=1, strict=True)  # strict: `history: yes` is not 1 move
    history_days: float | None = Field(default=None, ge=0, le=36500, strict=True)
    keep: tuple[str, ...] = ()
    grace_days: float = Field(default=7, ge=0, le=36500, strict=True)

    @model_validator(mode="after")
    def _keep_has_an_effect(self) -> Self:
        if self.keep and self.keeps_all_moves:
            raise ConfigError(
                "keep has no effect: all moves of all names are kept. Limit them with history or history_days, "
                "or leave keep out."
            )
        return self

    @property
    def keeps_all_moves(self) -> bool:
        """Whether every move of every name counts."""
        return self.history is None and self.history_days is None

    @property
    def grace(self) -> timedelta:
        """How old what may go is at least."""
        return timedelta(days=self.grace_days)

    def told(self, rule: int) -> str:
        """Return a rule for people."""
        moves = "all moves of each name" if self.keeps_all_moves else f"last {self.history} moves of each name"
        return {
            IN_FORCE: "names, as they point now",
            FITS: f"all moves of names that fit {', '.join(self.keep)}",
            HISTORY: moves,
            RECENT: f"in force within {self.history_days or 0:g} days",
            YOUNG: f"written within {self.grace_days:g} days",
            NEW: "published during this collection",
            PINNED: "a running flow",
        }[rule]


class Reason(NamedTuple):
    """Why an artifact is kept: by which rule, and through which name, if through one."""

    rule: int
    name: str = ""
    number: int = 0

    def told(self, rules: Rules) -> str:
        """Return the reason for people."""
        if not self.name:
            return rules.told(self.rule)
        return self.name if self.rule == IN_FORCE else f"{self.name}, move {self.number} ({rules.told(self.rule)})"


class RuleReport(Frozen):
    """What a rule keeps that none before it does: how many artifacts, and their bytes."""

    rule: str
    artifacts: int
    bytes: int


class KeptArtifact(Frozen):
    """An artifact that people look for, and why it is kept."""

    id: str
    kind: str
    summary: str
    kept_by: tuple[str, ...]


@dataclass(frozen=True)
class Kept:
    """What is kept.

    Attributes:
        roots: by id, why what is kept for its own sake is.
        via: every id that is kept, by which other one it is needed; None for the roots.
    """

    roots: Mapping[str, list[Reason]] = field(default_factory=dict)
    via: Mapping[str, str | None] = field(default_factory=dict)

    def root_of(self, artifact_id: str) -> str:
        """Return the root for whose sake an artifact is kept."""
        while (before := self.via[artifact_id]) is not None:
            artifact_id = before
        return artifact_id

    def rule_of(self, artifact_id: str) -> int:
        """Return the first rule that keeps the root of an artifact."""
        return min(self.roots[self.root_of(artifact_id)]).rule

    def by_rule(self, rules: Rules, sizes: Mapping[str, int]) -> tuple[RuleReport, ...]:
        """Return what each rule keeps, given the bytes of the artifacts that there are."""
        found: dict[int, list[int]] = {}
        for name in sizes:
            if name in self.via:
                found.setdefault(self.rule_of(name), []).append(sizes[name])
        return tuple(
            RuleReport(rule=rules.told(rule), artifacts=len(found[rule]), bytes=sum(found[rule]))
            for rule in sorted(found)
        )

    def listed(self, rules: Rules, entries: Mapping[str, CatalogEntry]) -> tuple[KeptArtifact, ...]:
        """Return the artifacts that people look for, with every reason."""
        told = []
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].started, item[0])):
            kind = kind_of(entry.kind)
            if name in self.via and (kind is None or kind.listed):
                root = self.root_of(name)
                reasons = tuple(reason.told(rules) for reason in sorted(self.roots[root]))
                through = reasons if root == name else tuple(f"{one}, through {root[:12]}" for one in reasons)
                told.append(KeptArtifact(id=name, kind=entry.kind, summary=entry.summary, kept_by=through))
        return tuple(told)


def roots_of(
    logs: Mapping[str, Log], rules: Rules, now: datetime, others: Mapping[int, Iterable[str]]
) -> dict[str, list[Reason]]:
    """Return what is kept for its own sake, and why.

    Args:
        logs: of all names.
        rules: the rules.
        now: the time by the store's clock.
        others: ids that are kept by rules which no name has a part in.

    Raises:
        CorruptArtifactError: a move that counts is damaged.
    """
    found: dict[str, list[Reason]] = {}
    faults = []
    for log in logs.values():
        first = _first_kept(log, rules, now)
        begin = min(first.values())
        for move in log.moves:
            if move.number >= begin:
                rule = min(rule for rule, start in first.items() if move.number >= start)
                found.setdefault(move.id, []).append(Reason(rule, log.name, move.number))
        if any(number >= begin for number in log.damaged):
            faults.append(log.trouble())
    if faults:
        raise CorruptArtifactError(f"It is not known what a name keeps, and nothing was deleted. {' '.join(faults)}")
    for rule, ids in others.items():
        for one in ids:
            found.setdefault(one, []).append(Reason(rule))
    return found


def _first_kept(log: Log, rules: Rules, now: datetime) -> dict[int, int]:
    """Return by rule the number of the first move that it keeps; it keeps all after that one as well."""
    first = {IN_FORCE: log.numbers[-1]}
    if any(fnmatchcase(log.name, pattern) for pattern in rules.keep):
        first[FITS] = log.numbers[0]
    if rules.history is not None or rules.keeps_all_moves:
        first[HISTORY] = log.numbers[0 if rules.history is None else -rules.history :][0]
    if rules.history_days is not None:
        first[RECENT] = _first_in_force_since(log, now - timedelta(days=rules.history_days))
    return first


def _first_in_force_since(log: Log, since: datetime) -> int:
    """Return the first move that was in force at or after a time: a move ends when the next one begins.

    A move that cannot be read, or whose time cannot, ends nothing.
    """
    before = [move.number for move in log.moves if (time := _time_of(move.moved)) and time < since]
    return max(before, default=log.numbers[0])


def _time_of(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def require_fitting(rules: Rules, names: Iterable[str], url: str) -> None:
    """Refuse patterns that fit no name: with a letter wrong they would keep nothing.

    Raises:
        ConfigError: naming the pattern.
    """
    names = sorted(names)
    for pattern in rules.keep:
        if not any(fnmatchcase(name, pattern) for name in names):
            there = f"It has {', '.join(names[:5])}{', …' if len(names) > 5 else ''}." if names else "It has no names."
            raise ConfigError(f"keep: no name of {url} fits {pattern!r}, and nothing was deleted. {there}")
