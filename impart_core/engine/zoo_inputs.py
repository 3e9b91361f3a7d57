"""What the entries of a zoo depend on, told without opening weights."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from impart_core.artifacts import (
    activations,
    block,
    calibration_text,
    delta,
    evaluation,
    factors,
    merged,
    scales,
    sensitivity,
    study,
)
from impart_core.base.canonical import digest_of
from impart_core.base.errors import CheckpointError, ConfigError, ImpartError, UnreachableError
from impart_core.base.retry import patiently
from impart_core.blocks.request import LOSSLESS
from impart_core.calibrate.text import PUBLISHED
from impart_core.checkpoint.digest import checkpoint_id, tensor_digests
from impart_core.checkpoint.listing import listing_digest
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.location import is_remote
from impart_core.codec import exact
from impart_core.delta.quality import RULE
from impart_core.engine.preflight import open_side
from impart_core.engine.zoo_entry import EntryJob
from impart_core.evaluation.catalogue import named_tasks, task_fingerprint
from impart_core.evaluation.options import MeasureOptions
from impart_core.methods import METHODS
from impart_core.store.names import all_refs
from impart_core.store.store import Store
from impart_core.zoo.record import Outcome

_KINDS = (activations, block, calibration_text, delta, evaluation, factors, merged, scales, sensitivity, study)
_MODELS = ("base", "finetuned", "base_model", "model", "ref")
# What decides on nothing that is made.
_UNIMPORTANT: Any = {
    **dict.fromkeys(("name", "owner", "tags", "trust", "workers", "store", "device", "run_code"), True),
    **dict.fromkeys(("fingerprint", "base_listing", "sides", "forecasts"), True),
    "model": {"name", "owner", "tags"},
}


class Inputs:
    """The checkpoints and names that entries depend on, each looked at once."""

    def __init__(self, store: Store) -> None:
        """Look at nothing yet."""
        self._store = store
        self._listings: dict[str, str | None] = {}
        self._refs: Mapping[str, str] | None = None
        self._definitions: dict[str, Any] = {}
        self._silent: dict[str, UnreachableError] = {}  # hosts that do not answer now

    @property
    def refs(self) -> Mapping[str, str]:
        """The ids that all names of the store point to, read once."""
        if self._refs is None:
            self._refs = patiently("read names", lambda: all_refs(self._store))
        return self._refs

    def stamped(self, job: EntryJob) -> EntryJob:
        """Return an entry with its fingerprint, the listing of its base, and that of a model's two checkpoints."""
        fingerprint = self._fingerprint(job)
        listing = self._listings.get(job.base) if job.base else None
        told = {"fingerprint": fingerprint, "base_listing": listing, "sides": self._sides(job)}
        return job.model_copy(update=told)

    def _sides(self, job: EntryJob) -> str | None:
        """Return a digest of what lies where a model's base and fine-tune do; None where that cannot be told."""
        sides = [self._listings.get(place) for place in (job.model.base, job.model.place)] if job.model else [None]
        return None if None in sides else digest_of(sides)

    def _fingerprint(self, job: EntryJob) -> str | None:
        """Return a digest of all that an entry depends on; None where that cannot be told without reading weights.

        A place that cannot be listed gives None too: whoever works on the entry will say what is wrong with it.
        """
        try:
            places = {place: self._place(place) for place in places_of(job)}
            tasks = [self._tasks(tuple(job.gate.tasks), job.gate.measuring)]
            tasks += [self._tasks(tuple(job.search.tasks), job.search.measuring)] if job.search else []
            texts = {source: self._text(source) for source in _sources(job)}
        except ImpartError:
            return None
        if None in places.values():
            return None
        settings = job.model_dump(mode="json", exclude=_UNIMPORTANT)
        versions = _versions() if job.foretold_at_least is None else {**_versions(), "foretelling": RULE._asdict()}
        return digest_of({"settings": settings, "places": places, "tasks": tasks, "texts": texts, "versions": versions})

    def require_same_bases(self, before: Iterable[Outcome]) -> None:
        """Refuse a base whose content is another than when models were compressed against it.

        It is opened only where its files are not those of last time.

        Raises:
            ConfigError: naming it, and the models whose deltas need the former one.
        """
        by_base: dict[str, list[Outcome]] = {}
        for outcome in before:
            if outcome.base and outcome.base_id and outcome.artifact:
                by_base.setdefault(outcome.base, []).append(outcome)
        for place, outcomes in by_base.items():
            if place not in self._listings:
                continue  # no entry names it any more
            listing = self._listings[place]
            changed = [one for one in outcomes if listing is None or one.base_listing != listing]
            found = _content(place) if changed else None
            other = [outcome for outcome in changed if found is not None and outcome.base_id != found]
            if other:
                names = ", ".join(outcome.name for outcome in other[:5])
                raise ConfigError(
                    f"The base {place} is not what it was when {names} and so on were compressed "
                    f"({str(other[0].base_id)[:12]} then, {str(found)[:12]} now): their deltas fit the former only. "
                    "Put that back, or give the new one another place or revision, as org/name@v2."
                )

    def _tasks(self, tasks: tuple[str, ...], options: MeasureOptions) -> Any:
        """Return what decides on the results of tasks."""
        key = digest_of([tasks, options.model_dump(mode="json")])
        if tasks and key not in self._definitions:
            names, placed = named_tasks(tasks, options)
            self._definitions[key] = task_fingerprint(list(names), placed)
        return self._definitions.get(key)

    def _place(self, place: str) -> str | None:
        """Return a digest of what lies at a place, or the id that a name points to."""
        if place not in self._listings:
            self._listings[place] = self._named(place) or self._listed(place)
        return self._listings[place]

    def _named(self, name: str) -> str | None:
        """Return the id that a name points to."""
        return self.refs.get(name)

    def _text(self, source: str) -> str | None:
        """Return what tells whether calibration text, or a study, is the same as before."""
        name = source.removeprefix(PUBLISHED)
        if named := self._named(name):
            return named
        path = Path(source).expanduser()
        if not path.is_file():
            return None
        file = local_file(path)
        return f"{file.size}-{file.stamp}"

    def _listed(self, place: str) -> str | None:
        """List a place once: whoever works on the entry has the patience; a host that is silent is not asked again."""
        scheme, _, rest = place.rpartition("://")
        host = f"{scheme}://{rest.partition('/')[0]}" if scheme not in ("", "hf") else "the Hub"
        if is_remote(place) and host in self._silent:
            raise self._silent[host]
        try:
            return listing_digest(place)
        except UnreachableError as error:
            self._silent[host] = error
            raise


def _sources(job: EntryJob) -> Iterator[str]:
    """Give the calibration texts, and the study, that an entry depends on."""
    yield from (step.calibration.source for step in job.steps if step.calibration)
    if job.search:
        yield from _texts(job.search.merge or job.search.compress, ("source",))
        if job.search.sampler.warm_study:
            yield job.search.sampler.warm_study


def places_of(job: EntryJob) -> Iterator[str]:
    """Give the places and names that an entry reads from."""
    if job.model:
        yield from (job.model.base, job.model.place)
    for stage in job.stages:
        named = {one.name for one in job.stages}
        for reference in (*stage.references(), *([stage.base_model] if stage.base_model else [])):
            own = stage.own_of(reference).ref
            yield from (place for place in (own or reference.place, reference.adapter) if place and place not in named)
    if job.search:
        yield from _texts(job.search.merge or job.search.compress)


def _texts(template: Any, keys: tuple[str, ...] = _MODELS, key: str = "") -> Iterator[str]:
    """Give what stands under these keys in a search's template, in holes too."""
    if isinstance(template, Mapping):
        for name, value in template.items():
            yield from _texts(value, keys, key if name in ("choose", "default") else name)
    elif isinstance(template, list | tuple):
        for value in template:
            yield from _texts(value, keys, key)
    elif isinstance(template, str) and key in keys:
        yield template


def _content(place: str) -> str | None:
    """Return the id of a checkpoint by content; None where it cannot be opened: its models will say why."""
    try:
        return checkpoint_id(tensor_digests(open_side(place)))
    except CheckpointError:
        return None


@cache
def _versions() -> dict[str, Any]:
    """Return the versions of all that makes artifacts."""
    methods = {LOSSLESS: exact.VERSION, **{name: METHODS.get(name).version for name in METHODS}}
    return {"methods": methods, "kinds": [kind.VERSIONS for kind in _KINDS]}
