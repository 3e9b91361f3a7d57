"""A zoo file's entries as jobs: patterns looked up, files of merges and searches read, all of it checked."""

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from impart_core.base.errors import ConfigError, unknown_name
from impart_core.base.retry import patiently
from impart_core.base.settings import Frozen
from impart_core.checkpoint.listing import find_models
from impart_core.checkpoint.location import is_remote
from impart_core.engine.requests import Trust
from impart_core.engine.zoo_entry import EntryJob
from impart_core.evaluation.catalogue import metrics_of, named_tasks
from impart_core.evaluation.harness import check_request
from impart_core.merging.file import MergeFile, merge_of, read_merge_file
from impart_core.searching.file import SearchFile, parse_search, read_search_file
from impart_core.store.names import require_ref_name
from impart_core.store.store import default_store_url
from impart_core.zoo.file import Entry, Pattern, ZooFile, ZooMerge, ZooModel, ZooSearch, require_unique
from impart_core.zoo.gate import Gate, deciding_metric
from impart_core.zoo.recipe import Step


class ZooRequest(Frozen):
    """A zoo to bring up to date.

    Attributes:
        zoo: what its file says.
        store: the store's URL; None: as the file says, else IMPART_STORE.
        only: names of entries, patterns of names with `*`, or `tag:WORD` and `owner:NAME`; empty: all.
        again: whether entries are worked on that nothing has changed for.
        trust: how far what is there already is trusted.
    """

    zoo: ZooFile
    store: str | None = None
    only: tuple[str, ...] = ()
    again: bool = False
    trust: Trust = Trust()

    @property
    def place(self) -> str:
        """The store's URL."""
        return self.store or self.zoo.store or default_store_url()


def entries_of(zoo: ZooFile) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Return all entries, with what patterns find in the pattern's place, and sentences on what they do not.

    A folder whose name cannot be an entry's is told, and stops nothing: it may have come overnight.
    """
    models: list[Entry] = []
    trouble: list[str] = []
    listed = {
        _real(place) for model in zoo.models if isinstance(model, ZooModel) for place in (model.place, model.base)
    }
    for model in zoo.models:
        if not isinstance(model, Pattern):
            models.append(model)
            continue
        found = patiently(f"look for {model.find}", lambda: find_models(model.find))  # noqa: B023
        listed.add(_real(model.base))
        kept = {
            name: place
            for name, place in found.items()
            if _real(place) not in listed and not any(fnmatchcase(name, one) for one in model.without)
        }
        for name, place in kept.items():
            try:
                models.append(model.model(name, place))
            except ConfigError as error:
                trouble.append(
                    f"find: {model.find}: the folder {name!r:.100} is no entry: {error} Say another name: (as "
                    "sft-{folder}), or leave it out (without:)."
                )
        if not kept:
            trouble.append(f"find: {model.find} finds no model{' that is no entry of its own' if found else ''}.")
    entries = (*models, *zoo.merges, *zoo.searches)
    require_unique([entry.name for entry in entries])
    for entry in entries:
        require_ref_name(f"{entry.name}@{zoo.label}")
    return entries, tuple(trouble)


def _real(place: str) -> str:
    """Return a folder with links followed, so that one that is written in two ways is the same."""
    return place if is_remote(place) else os.path.realpath(place)


def check_gates(zoo: ZooFile, entries: Iterable[Entry]) -> None:
    """Check that the tasks of all gates exist, and that these have the metrics, as far as their configurations tell."""
    gates = [zoo.gate_of(entry) for entry in entries if isinstance(entry, ZooModel)]
    gates += [merge.gate for merge in zoo.merges]
    code = "sandboxed" if zoo.run_code else "never"
    for gate in {gate.model_dump_json(): gate for gate in gates if gate.tasks}.values():
        names, options = named_tasks(tuple(gate.tasks), gate.measuring)
        check_request(names, gate.limit, options, code)  # type: ignore[arg-type]
        if len(names) < len(gate.tasks):
            raise ConfigError(
                f"The gate names a task twice: {', '.join(gate.tasks)}. Name each by its name or its file."
            )
        for task, name in zip(gate.tasks, names, strict=True):
            metrics = metrics_of(name, options)
            if metrics is not None:
                deciding_metric(gate, task, metrics)


def job_of(request: ZooRequest, entry: Entry) -> EntryJob:
    """Return an entry as it is to be worked on."""
    zoo, gate, at_least = request.zoo, Gate(), None
    steps: tuple[Step, ...] = ()
    model = entry if isinstance(entry, ZooModel) else None
    stages: tuple[MergeFile, ...] = ()
    search: SearchFile | None = None
    if model:
        recipe = zoo.recipes[model.recipe]
        steps, gate, at_least = recipe.steps, zoo.gate_of(model), recipe.foretold_at_least
    elif isinstance(entry, ZooMerge):
        gate = entry.gate
        stages = read_merge_file(Path(entry.merge)) if isinstance(entry.merge, str) else (merge_of(entry.merge),)
        if stages[-1].impart.compress is None:
            raise ConfigError(
                f"The merge {entry.name} would be lost: the zoo keeps deltas. Say how it is compressed, as "
                "impart: {compress: {cr: 16}} in its file."
            )
    elif isinstance(entry, ZooSearch):
        search = read_search_file(entry.search) if isinstance(entry.search, str) else parse_search(entry.search)
    return EntryJob(
        name=entry.name,
        ref=f"{entry.name}@{zoo.label}",
        store=request.place,
        device=zoo.device,
        workers=zoo.workers,
        run_code=zoo.run_code,
        trust=request.trust,
        owner=entry.owner,
        tags=entry.tags,
        gate=gate,
        steps=steps,
        foretold_at_least=at_least,
        model=model,
        stages=stages,
        search=search,
    )


def wanted_of(only: Sequence[str], jobs: Sequence[EntryJob]) -> set[str]:
    """Return the names of the entries that are asked for."""
    if not only:
        return {job.name for job in jobs}
    wanted: set[str] = set()
    for text in only:
        key, colon, value = text.partition(":")
        if colon and key == "tag":
            found = {job.name for job in jobs if value in job.tags}
        elif colon and key == "owner":
            found = {job.name for job in jobs if value == job.owner}
        else:
            found = {job.name for job in jobs if fnmatchcase(job.name, text)}
        if not found:
            raise unknown_name("entry", text, [job.name for job in jobs])
        wanted |= found
    return wanted
