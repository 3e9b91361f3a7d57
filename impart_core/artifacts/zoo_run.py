"""Runs of the zoo: what became of each entry, for people and for the next run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from impart_core.base.errors import ArtifactNotFoundError, ConfigError, CorruptArtifactError
from impart_core.store.manifest import Content, Manifest, register
from impart_core.store.names import all_logs, get_ref, set_ref
from impart_core.store.pins import pin
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import publish
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store
from impart_core.store.who import in_home, without_home
from impart_core.zoo.record import Counts, ZooRun
from impart_core.zoo.report import html_report, markdown_report

RUN_FILE, MARKDOWN_FILE, HTML_FILE = "run.json", "report.md", "report.html"
VERSIONS = {"zoo": 1}


@register
class ZooRunContent(Content):
    """A run of the zoo in numbers; all of it is in its files."""

    kind: Literal["zoo_run"] = "zoo_run"
    plural: ClassVar[str] = "runs of the zoo"
    colour: ClassVar[str] = "#e4e4d8"
    listed: ClassVar[bool] = True
    repeats: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = (RUN_FILE, MARKDOWN_FILE, HTML_FILE)
    zoo: str
    counts: Counts

    def summary(self, recipe: Recipe) -> str:  # noqa: ARG002
        """Return the zoo's name and the number of entries by status."""
        told = ", ".join(f"{number} {status}" for status, number in self.counts.entries.items())
        return f"{self.zoo}: {told}"

    def check(self, name: str, path: Path) -> None:
        """Check that the record tells of the same numbers as the manifest."""
        if name == RUN_FILE and Counts.of(_read(path)) != self.counts:
            raise CorruptArtifactError(f"{path} does not hold the run that its manifest tells of.")


def ref_of(zoo: str) -> str:
    """Return the name of a zoo's last run."""
    return f"zoo-{zoo}"


def publish_zoo_run(store: Store, run: ZooRun, watch: Stopwatch) -> Manifest:
    """Publish a run of the zoo, and point the zoo's name to it; return the manifest."""
    run = _rewritten(run, without_home)
    recipe = Recipe(operation="zoo", version=VERSIONS["zoo"], config={"zoo": run.zoo}, inputs={"run": run.run})
    content = ZooRunContent(zoo=run.zoo, counts=Counts.of(run))
    files = {
        RUN_FILE: lambda path: path.write_text(run.model_dump_json(), encoding="utf-8"),
        MARKDOWN_FILE: lambda path: path.write_text(markdown_report(run), encoding="utf-8"),
        HTML_FILE: lambda path: path.write_text(html_report(run), encoding="utf-8"),
    }
    with pin(store, [recipe.id]):
        manifest = publish(store, recipe, content, files, watch)
        set_ref(store, ref_of(run.zoo), manifest.id, why="zoo run")
    return manifest


def read_zoo_run(store: Store, artifact_id: str) -> ZooRun:
    """Return a run of the zoo.

    Raises:
        ArtifactNotFoundError: there is no such artifact.
        ConfigError: it is no run of a zoo.
        CorruptArtifactError: it is damaged.
    """
    manifest = store.manifest(artifact_id)
    if not isinstance(manifest.content, ZooRunContent):
        raise ConfigError(f"{artifact_id[:12]} is of kind {manifest.content.kind}, no run of a zoo.")
    with store.local_file(manifest, RUN_FILE, verified=True) as path:
        return _read(path)


def last_zoo_run(store: Store, zoo: str) -> ZooRun | None:
    """Return a zoo's last run; None where there is none. Errors as in `read_zoo_run`."""
    found = get_ref(store, ref_of(zoo))
    return read_zoo_run(store, found) if found else None


def owners_of(store: Store) -> dict[str, set[str]]:
    """Return the owners of artifacts by id: those of zoo files, as the last run of each zoo recorded them.

    An owner has what the name of their entry points to and has pointed to, and what was tried for the entry.
    """
    logs, owners = all_logs(store), dict[str, set[str]]()
    for name, log in logs.items():
        run = _run_of(store, log.moves[-1].id) if name.startswith(ref_of("")) and log.moves else None
        for outcome in run.outcomes if run else ():
            if outcome.owner:
                moves = logs[outcome.ref].moves if outcome.ref in logs else ()
                for artifact in (*(move.id for move in moves), *(attempt.artifact for attempt in outcome.attempts)):
                    owners.setdefault(artifact, set()).add(outcome.owner)
    return owners


def _run_of(store: Store, artifact_id: str) -> ZooRun | None:
    """Return a run of a zoo; None where it is something else, lost or damaged."""
    try:
        return read_zoo_run(store, artifact_id)
    except (ArtifactNotFoundError, ConfigError, CorruptArtifactError):
        return None


def _read(path: Path) -> ZooRun:
    try:
        run = ZooRun.model_validate(json.loads(path.read_bytes()))
    except (ValueError, RecursionError, ValidationError, ConfigError) as error:
        raise CorruptArtifactError(f"{path} does not hold a run of a zoo: {error}") from error
    outcomes = (one.model_copy(update={"base": one.base and in_home(one.base)}) for one in run.outcomes)
    return run.model_copy(update={"outcomes": tuple(outcomes)})


def _rewritten(run: ZooRun, rewrite: Callable[[str], str]) -> ZooRun:
    """Return a run with every text in it rewritten."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(one) for key, one in value.items()}
        if isinstance(value, list):
            return [walk(one) for one in value]
        return rewrite(value) if isinstance(value, str) else value

    return ZooRun.model_validate(walk(run.model_dump(mode="json")))
