"""The search file: a template with holes, what is looked for, and how."""

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from impart_core.base.errors import ConfigError, unknown_name
from impart_core.base.settings import Frozen
from impart_core.base.yaml_text import read_settings_file
from impart_core.evaluation.options import MeasureOptions
from impart_core.searching.objective import Aims
from impart_core.searching.space import Space
from impart_core.searching.starts import NamedStart, Start, starting_values

SamplerName = Literal["grid", "random", "qmc", "tpe", "gp", "cmaes", "nsga2", "nsga3"]
LEAST_WARM = 10  # CMA-ES begins at the best tenth of what it is told
_SPLITS = ("split", "splits", "test", "test_split", "validation")


class SamplerSettings(Frozen):
    """How candidates are suggested. In a file the name alone will do.

    Attributes:
        name: `grid`: all of them in order; `random`; `qmc`: a Sobol sequence, which covers the space evenly; `tpe`:
            a tree-structured Parzen estimator; `gp`: a Gaussian process; `cmaes`: CMA-ES with a learning rate that
            adapts to noise; `nsga2`, `nsga3`: genetic, for several objectives.
        startup: trials at random before `tpe` or `gp` learns from any; None: 10.
        population: candidates of a generation of `cmaes`, `nsga2` or `nsga3`; None: Optuna's own number.
        warm_start: of `cmaes`: so many trials of a cheaper search, on the first rung of items alone and spread evenly
            over the space, tell it where to begin; at least 10. 0: it begins in the middle.
        warm_study: of `cmaes`, instead: the name or id of another study of the same space, whose trials tell it so: a
            cheaper one, on fewer items, on another task or of smaller models. Its first objective is that of this one.
    """

    name: SamplerName = "tpe"
    startup: int | None = Field(default=None, ge=1)
    population: int | None = Field(default=None, ge=2)
    warm_start: int = Field(default=0, ge=0)
    warm_study: str | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        takers: dict[str, tuple[SamplerName, ...]] = {
            "startup": ("tpe", "gp"),
            "population": ("cmaes", "nsga2", "nsga3"),
            "warm_start": ("cmaes",),
            "warm_study": ("cmaes",),
        }
        for option, names in takers.items():
            if getattr(self, option) and self.name not in names:
                raise ConfigError(f"sampler.{option} has no effect on {self.name}; it is for {', '.join(names)}.")
        if 0 < self.warm_start < LEAST_WARM:
            raise ConfigError(f"sampler.warm_start is {self.warm_start}; it must be at least {LEAST_WARM}, or 0.")
        if self.warm_start and self.warm_study:
            raise ConfigError("sampler has warm_start, trials of its own, and warm_study, those of another. Take one.")
        return self


class Budget(Frozen):
    """When a search ends: with whatever is used up first. The candidates under way are finished.

    Attributes:
        trials: candidates that are tried.
        items: items that candidates are scored on, summed over candidates and tasks.
        minutes: of evaluation, as the ledger recorded it, the candidates of a batch at once: the same search over the
            same ledger ends at the same trial, whatever the clock says then.
    """

    trials: int | None = Field(default=None, ge=1)
    items: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)


class SearchFile(Aims):
    """A search; see `Aims` for what it looks for. It uses validation items only, and cannot name a split.

    Attributes:
        merge: a merge file with holes in it; either this or `compress`.
        compress: a compression with holes in it: base, finetuned, method, cr, seed, options and so on.
        name: the name that the winner is published under; None: none.
        sampler: how candidates are suggested.
        starts: what is tried first, after the default candidate.
        parallel: candidates that are suggested, and tried, at once. It decides on what is suggested.
        items: items of each task that a candidate is scored on: first those of the first rung, then, while it is not
            worse than the best by more than chance, those up to the next. None: all at once.
        significance: of the test by which a candidate is worse.
        budget: when it ends. A grid ends by itself.
        seed: of all draws.
        measuring: how tasks are measured.
    """

    merge: dict[str, Any] | None = None
    compress: dict[str, Any] | None = None
    name: str | None = None
    sampler: SamplerSettings = SamplerSettings()
    starts: tuple[Start, ...] = ("uniform", "one-hot")
    parallel: int = Field(default=1, ge=1)
    items: tuple[int, ...] | None = Field(default=None, min_length=1)
    significance: float = Field(default=0.1, gt=0, lt=0.5)
    budget: Budget = Budget()
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    measuring: MeasureOptions = MeasureOptions()

    @classmethod
    def unknown_key(cls, path: tuple[str, ...], values: Mapping[str, Any]) -> str:
        """Say of a split that there is none to choose, and of all else what `Frozen` does."""
        if path[-1] in _SPLITS:
            return (
                f"A search has no setting {'.'.join(path)!r}: it uses validation items only, and scores the winner "
                "once on the test split. Leave it out."
            )
        return super().unknown_key(path, values)

    @field_validator("starts", mode="before")
    @classmethod
    def _starts_exist(cls, value: Any) -> Any:
        listed = [value] if isinstance(value, str | dict) else value
        for start in listed if isinstance(listed, list | tuple) else ():
            if not isinstance(start, dict) and start not in get_args(NamedStart):
                raise unknown_name("start", str(start), get_args(NamedStart))
        return listed

    @field_validator("items", mode="before")
    @classmethod
    def _one_rung(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("items")
    @classmethod
    def _rungs_grow(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value and (value[0] < 1 or any(after <= before for before, after in pairwise(value))):
            raise ConfigError(f"items must grow from at least 1; they are {', '.join(map(str, value))}.")
        return value

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if (self.merge is None) == (self.compress is None):
            raise ConfigError(
                "A search needs exactly one template: merge: (a merge file) or compress: (a compression)."
            )
        several = len(self.objectives) > 1
        if self.sampler.name == "cmaes" and several:
            raise ConfigError(
                "cmaes takes one objective. Take tpe, gp, nsga2 or nsga3, or make the others constraints."
            )
        if self.sampler.name == "grid":
            next(self.space.grid())
        elif self.budget == Budget():
            raise ConfigError("A search needs an end: budget: {trials: 100}, or items, or minutes.")
        for values in starting_values(self.space, self.starts):
            self.space.fill(values)
        return self

    @property
    def kind(self) -> Literal["merge", "compress"]:
        """What the template is one of."""
        return "compress" if self.merge is None else "merge"

    @cached_property
    def space(self) -> Space:
        """The space of its template."""
        return Space.of({self.kind: self.merge if self.compress is None else self.compress})

    def rungs(self, available: int) -> tuple[tuple[int, int], ...]:
        """Return the ranges of items that candidates are scored on, one after another.

        Args:
            available: how many validation items the task with the fewest has.

        Raises:
            ConfigError: fewer than asked for, or more than the budget has for one candidate.
        """
        stops = self.items or (available,)
        if stops[-1] > available:
            raise ConfigError(f"{stops[-1]} validation items are asked for, and a task has {available}. Lower items.")
        self._require_budget(stops[0])
        return tuple(zip((0, *stops), stops, strict=False))

    def _require_budget(self, first: int) -> None:
        """Refuse a budget that is used up before the first candidate is tried, or before it has been scored once."""
        each, stage = first * len(self.tasks), self.sampler.warm_start
        if self.budget.items is not None and self.budget.items < each * (1 + stage):
            of = f" of each of {len(self.tasks)} tasks" if len(self.tasks) > 1 else ""
            before = f", and the {stage} trials of the warm start {stage * each:,}" if stage else ""
            raise ConfigError(
                f"The budget of {self.budget.items:,} items is too small: a candidate is scored on {first:,} items{of} "
                f"first, {each:,} in all{before}. Raise budget.items to at least {each * (1 + stage):,}, or "
                "lower items."
            )


def read_search_file(place: str | Path) -> SearchFile:
    """Read a search file.

    Raises:
        ConfigError: it cannot be read, is no YAML, or something in it is wrong.
    """
    return parse_search(read_settings_file(place, "search file"))


def parse_search(content: Any) -> SearchFile:
    """Return the search of what YAML gives.

    Raises:
        ConfigError: something in it is wrong.
    """
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError("A search file holds settings with names: merge: or compress:, tasks:, budget: and so on.")
    return SearchFile(**content)
