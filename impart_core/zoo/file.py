"""The zoo file: a team's models, how each is compressed, what it may lose, and when that is done."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator, model_validator

from impart_core.base.errors import ConfigError, unknown_name
from impart_core.base.settings import Frozen
from impart_core.base.spread import Spread
from impart_core.base.yaml_text import read_settings_file
from impart_core.store.retention import Rules
from impart_core.zoo.gate import Gate, Tasks, tasks_of
from impart_core.zoo.places import placed
from impart_core.zoo.recipe import ZooRecipe

DEFAULT_RECIPE = "default"
DEFAULT_EXPERIMENT = "impart"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FIELDS = 5
_FIELD = re.compile(r"(\*|\d+(-\d+)?|(mon|tue|wed|thu|fri|sat|sun|[a-z]{3}))([/,-]\w+)*", re.IGNORECASE)
_HEX = re.compile(r"[0-9a-f]{6,64}")


class Entry(Frozen):
    """What every entry of the zoo has.

    Attributes:
        name: the result is published as `name@label`.
        owner: whose it is.
        tags: words that `--only` takes, as `tag:WORD`.
    """

    name: str
    owner: str | None = None
    tags: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _can_name(cls, value: str) -> str:
        return require_name(value)


class ZooModel(Entry):
    """A fine-tuned model.

    Attributes:
        base: the base checkpoint: a folder, Hub id or fsspec URL.
        finetuned: the fine-tuned checkpoint, or an adapter.
        revision: which revision of it, where it is on the Hub.
        recipe: the recipe's name.
        tasks: the gate's tasks for this model in place of the recipe's.
    """

    base: str
    finetuned: str
    revision: str | None = None
    recipe: str = DEFAULT_RECIPE
    tasks: Tasks = Field(default_factory=dict)

    @field_validator("tasks", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tasks_of(value)

    @property
    def place(self) -> str:
        """Where the fine-tuned checkpoint lies, with its revision."""
        return f"{self.finetuned}@{self.revision}" if self.revision else self.finetuned


class Pattern(Frozen):
    """Models that are found when the zoo is run: every folder that a place with `*` in its last part fits.

    Attributes:
        find: the place: `/models/*-sft`, `s3://bucket/team/*`, `hf://org/*`.
        without: names of folders that are none of them, with `*`.
        name: what a model is called: `{folder}` is its folder's name.
        base: as in `ZooModel`; likewise `recipe`, `tasks`, `owner` and `tags`.
    """

    find: str
    without: tuple[str, ...] = ()
    name: str = "{folder}"
    base: str
    recipe: str = DEFAULT_RECIPE
    tasks: Tasks = Field(default_factory=dict)
    owner: str | None = None
    tags: tuple[str, ...] = ()

    @field_validator("tasks", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tasks_of(value)

    @model_validator(mode="after")
    def _can_be_found(self) -> Self:
        head, _, last = self.find.rstrip("/").rpartition("/")
        if not head or "*" not in last or "*" in head:
            raise ConfigError(f"find: {self.find!r} needs a * in its last part, and there alone: /models/*-sft.")
        if "{folder}" not in self.name:
            raise ConfigError(f"name: {self.name!r} gives all models one name. Put {{folder}} into it.")
        return self

    def model(self, folder: str, place: str) -> ZooModel:
        """Return the model that a folder of this name is."""
        shared = {name: getattr(self, name) for name in ("base", "recipe", "tasks", "owner", "tags")}
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("-._") or "model"
        return ZooModel(name=self.name.replace("{folder}", plain), finetuned=place, **shared)


class ZooMerge(Entry):
    """A merge of models, compressed as a delta of their base.

    Attributes:
        merge: a merge file, or what one holds; it says how the result is compressed (`impart: compress:`).
        gate: what the result has to keep: `at_least` alone counts, for there is no model to compare it with.
    """

    merge: str | dict[str, Any]
    gate: Gate = Gate()


class ZooSearch(Entry):
    """A search, which publishes its winner by itself.

    Attributes:
        search: a search file, or what one holds. Its winner is published under this entry's name.
    """

    search: str | dict[str, Any]


class Schedule(Frozen):
    """When the zoo is run.

    Attributes:
        cron: five fields: minute, hour, day of month, month, day of week.
        timezone: of these, by its IANA name.
    """

    cron: str
    timezone: str = "UTC"

    @field_validator("timezone")
    @classmethod
    def _exists(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError("it is no time zone; give an IANA name such as Europe/Berlin") from error
        return value

    @model_validator(mode="after")
    def _fires(self) -> Self:
        """Take what cron programs agree on: five fields, and days of the month or of the week, not both."""
        fields = self.cron.split()
        if len(fields) != _FIELDS or not all(_FIELD.fullmatch(field) for field in fields):
            raise ConfigError(
                f"schedule.cron {self.cron!r} is not five fields of numbers, names, '*', ',', '-' and '/': "
                "0 2 * * * is every night at two."
            )
        if fields[2] != "*" and fields[4] != "*":
            raise ConfigError(
                f"schedule.cron {self.cron!r} names days of the month and days of the week, which programs take to "
                "mean different things. Name one of them."
            )
        try:
            next(CronSim(self.cron, datetime.now(ZoneInfo(self.timezone))))
        except CronSimError as error:
            found = f"schedule.cron {self.cron!r} never fires, or is no cron expression: {error}."
            raise ConfigError(f"{found} Give five fields: 0 2 * * * is every night at two.") from error
        except StopIteration:
            raise ConfigError(f"schedule.cron {self.cron!r} never fires: there is no such day. Give another.") from None
        return self


class Retention(Rules):
    """What is cleaned up after a run, by the rules of `impart gc`.

    Attributes:
        collect: whether anything is: what no rule keeps, as by `impart gc --delete`.
    """

    collect: bool = False


class Notify(Frozen):
    """Who is told of a run's end.

    Attributes:
        webhook_env: the environment variable that holds an address to which the report is posted as JSON. The address
            may be a secret, and so does not stand in the file.
        when: always, or when something failed or was not promoted.
    """

    webhook_env: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    when: Literal["always", "trouble"] = "trouble"


class MLflow(Frozen):
    """Where a tracking server enters what is promoted: pointers, metrics and tags, never weights.

    Attributes:
        experiment: the experiment's name. The server's address is that of MLFLOW_TRACKING_URI.
    """

    experiment: str = Field(default=DEFAULT_EXPERIMENT, min_length=1)


class ZooFile(Spread):
    """A zoo; over what the blocks of its models are spread, as in `Spread`.

    Attributes:
        zoo: what it is called; the record of its last run is the artifact `zoo-NAME`.
        label: what is promoted is called `name@label`.
        store: the store's URL; None: IMPART_STORE, or what the command line says.
        recipes: by name; models that name none take `default`.
        models: models, and patterns that find some.
        merges: merges of them, after them.
        searches: searches, at the end.
        owners: whom a model may belong to, and how to reach them; empty: anybody.
        schedule: when it is run.
        concurrency: models worked on at once.
        workers: blocks of a model worked on at once; None: one for each core.
        device: where models are compressed and run.
        run_code: whether tasks may run code that models write, in a sandbox.
        retention: what is cleaned up after a run.
        notify: who is told.
        mlflow: where what is promoted is registered.
    """

    zoo: str = "zoo"
    label: str = "prod"
    store: str | None = Field(default=None, min_length=1)
    recipes: dict[str, ZooRecipe] = Field(default_factory=dict)
    models: tuple[ZooModel | Pattern, ...] = ()
    merges: tuple[ZooMerge, ...] = ()
    searches: tuple[ZooSearch, ...] = ()
    owners: dict[str, str] = Field(default_factory=dict)
    schedule: Schedule | None = None
    concurrency: int = Field(default=1, ge=1)
    workers: int | None = Field(default=None, ge=1)
    device: str = "auto"
    run_code: bool = False
    retention: Retention = Retention()
    notify: Notify | None = None
    mlflow: MLflow | None = None

    @field_validator("zoo", "label")
    @classmethod
    def _can_name(cls, value: str) -> str:
        return require_name(value)

    @field_validator("models", mode="before")
    @classmethod
    def _of_kind(cls, raw: Any) -> Any:
        """Read each entry as what it is, so that what is wrong is told of it alone."""
        if not isinstance(raw, list | tuple):
            return raw
        return [_entry(number, one) for number, one in enumerate(raw, 1)]

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if not (self.models or self.merges or self.searches):
            raise ConfigError("The zoo has no models, no merges and no searches. Give at least one.")
        for model in self.models:
            if model.recipe not in self.recipes:
                raise unknown_name("recipe", model.recipe, self.recipes)
            self.recipes[model.recipe].require_measured(model.tasks)
        for entry in chain(self.models, self.merges, self.searches):
            if self.owners and entry.owner is not None and entry.owner not in self.owners:
                raise unknown_name("owner", entry.owner, self.owners)
        require_unique([entry.name for entry in self.entries])
        return self

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries with a name, in the order in which they are worked on; what patterns find is not among them."""
        named = (model for model in self.models if isinstance(model, ZooModel))
        return (*named, *self.merges, *self.searches)

    def gate_of(self, model: ZooModel) -> Gate:
        """Return the gate that a model has to pass."""
        return self.recipes[model.recipe].gate.with_tasks(model.tasks)

    def next_run(self) -> datetime | None:
        """Return when it is run next by its schedule (UTC)."""
        if self.schedule is None:
            return None
        found: datetime = next(CronSim(self.schedule.cron, datetime.now(ZoneInfo(self.schedule.timezone))))
        return found.astimezone(UTC)


def require_name(value: str) -> str:
    """Return a name that entries, labels and zoos may have.

    Raises:
        ConfigError: it has other characters, or looks like an id.
    """
    if not NAME.fullmatch(value) or _HEX.fullmatch(value):
        raise ConfigError(
            f"{value!r:.150} cannot be a name here. Use letters, digits, '.', '_' and '-', and not just hexadecimal "
            "digits."
        )
    return value


def require_unique(names: list[str]) -> None:
    """Raise ConfigError where two entries have the same name."""
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ConfigError(f"Two entries are called {twice[0]!r}. Names of models, merges and searches differ.")


def read_zoo_file(place: str | Path) -> ZooFile:
    """Read a zoo file; places in it that are relative start at its folder.

    Raises:
        ConfigError: it cannot be read, is no YAML, or something in it is wrong.
    """
    return parse_zoo(read_settings_file(place, "zoo file"), Path(place).expanduser().absolute().parent)


def parse_zoo(content: Any, folder: Path | None = None) -> ZooFile:
    """Return the zoo of what YAML gives.

    Args:
        content: what it gives.
        folder: where relative places start; None: they stay as they are.

    Raises:
        ConfigError: something in it is wrong.
    """
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError("A zoo file holds settings with names: recipes:, models: and so on.")
    return ZooFile(**(content if folder is None else placed(content, folder)))


def _entry(number: int, raw: Any) -> ZooModel | Pattern:
    if isinstance(raw, ZooModel | Pattern):
        return raw
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(f"models: entry {number} is no mapping with name:, base: and finetuned:, or find: and base:.")
    try:
        return Pattern(**raw) if "find" in raw else ZooModel(**raw)
    except ConfigError as error:
        called = raw.get("name") or raw.get("find") or number
        raise ConfigError(f"models: {called}: {error}") from None
