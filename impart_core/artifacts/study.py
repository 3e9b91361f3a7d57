"""Studies: what a search tried and found, with all its trials, and how the winner does on the test split."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from impart_core.base.errors import ConfigError, CorruptArtifactError
from impart_core.base.settings import Frozen
from impart_core.evaluation.catalogue import task_fingerprint
from impart_core.searching.file import SearchFile
from impart_core.searching.ledger import Tally
from impart_core.searching.paired import Difference
from impart_core.searching.result import Study
from impart_core.store.manifest import Content, Manifest, Measured, register
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import Reuse, publish
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

STUDY_FILE = "study.json"
VERSIONS = {"study": 2}  # raised whenever the same recipe gives another study


class Standing(Frozen):
    """What one model scored.

    Attributes:
        metrics: value and standard error by task and metric.
        value: the search's first objective that is measured on items, and its standard error.
        items: number of items of each task.
    """

    metrics: dict[str, dict[str, Measured]]
    value: Measured
    items: dict[str, int]


class Verdict(Frozen):
    """The winner beside others. The test split was used for nothing else.

    Attributes:
        validation: standings of the base and of the experts on the validation items of complete trials.
        test: standings of `winner`, `default`, `base` and of each expert by its name on the test split.
        margins: how much the winner is above each of the others on the test split, by the first objective that is
            measured on items, of which more may be worse; paired by item.
        expert: the expert that is best on validation items.
    """

    validation: dict[str, Standing]
    test: dict[str, Standing]
    margins: dict[str, Difference]
    expert: str


class StudyRecord(Frozen):
    """All that is kept of a search.

    Attributes:
        file: its settings.
        study: what it tried and found.
        verdict: how the winner does; None where there is no winner.
        winner: the id of the winner's artifact, where it is one.
        tally: what it evaluated and found, and how long that took.
    """

    file: dict[str, Any]
    study: Study
    verdict: Verdict | None = None
    winner: str | None = None
    tally: dict[str, float] = Field(default_factory=dict)


@register
class StudyContent(Content):
    """A study: numbers of its trials, and the winner.

    Attributes:
        trials: number of trials.
        failed: of those that failed.
        pruned: of those that were given up on some of the items.
        best: number of the winner; None: there is none.
        winner: the id of the winner's artifact, where it is one.
        metrics: value and standard error of the winner on the test split, by task and metric.
    """

    kind: Literal["study"] = "study"
    plural: ClassVar[str] = "studies"
    colour: ClassVar[str] = "#e9d8f2"
    listed: ClassVar[bool] = True
    repeats: ClassVar[bool] = False  # its file tells how long it took
    files: ClassVar[tuple[str, ...]] = (STUDY_FILE,)
    trials: int = Field(ge=0)
    failed: int = Field(ge=0)
    pruned: int = Field(ge=0)
    best: int | None
    winner: str | None = None
    metrics: dict[str, dict[str, Measured]]

    def summary(self, recipe: Recipe) -> str:
        """Return the sampler, the number of trials, and the tasks."""
        sampler = recipe.config.get("sampler")
        name = sampler.get("name") if isinstance(sampler, dict) else "search"
        return f"{name}, {self.trials} trials on {', '.join(recipe.config.get('tasks') or ())}"

    def measurements(self) -> dict[str, dict[str, Measured]]:
        """Return what the winner scored on the test split."""
        return self.metrics

    def check(self, name: str, path: Path) -> None:  # noqa: ARG002 - it has one file
        """Check that the file holds as many trials as the manifest says, and the same winner."""
        record = _read(path)
        if (len(record.study.trials), record.study.best, record.winner) != (self.trials, self.best, self.winner):
            raise CorruptArtifactError(f"{path} does not hold the study that its manifest tells of.")


def study_recipe(file: SearchFile, template: Mapping[str, Any], inputs: Mapping[str, object]) -> Recipe:
    """Return what makes a study: the search, the tasks' definitions, and the checkpoints by content.

    Args:
        file: the search; the name of its winner is no part.
        template: its template without places.
        inputs: ids of what lies at these places, by role.
    """
    config = file.model_dump(mode="json", exclude={"name", "measuring", "merge", "compress"})
    del config["sampler"]["warm_study"]  # its id is among the inputs
    config[file.kind] = dict(template)
    config["parameters"] = list(file.space.holes)  # in this order they are drawn
    config["measuring"] = {**file.measuring.of_recipe(), "seed": file.measuring.seed}
    config["definitions"] = task_fingerprint(list(file.tasks), file.measuring)
    return Recipe(operation="search", version=VERSIONS["study"], config=config, inputs=dict(inputs))


def publish_study(
    store: Store, recipe: Recipe, record: StudyRecord, parents: Sequence[str], watch: Stopwatch, *, reuse: Reuse
) -> Manifest:
    """Publish what a search found; return the manifest in force."""
    states = [trial.state for trial in record.study.trials]
    content = StudyContent(
        trials=len(states),
        failed=states.count("failed"),
        pruned=states.count("pruned"),
        best=record.study.best,
        winner=record.winner,
        metrics=record.verdict.test["winner"].metrics if record.verdict else {},
    )
    text = record.model_dump_json().encode()  # objectives, parameters and models stay in their order
    files = {STUDY_FILE: lambda path: path.write_bytes(text)}
    return publish(store, recipe, content, files, watch, parents=tuple(parents), reuse=reuse)


def read_study(store: Store, artifact_id: str) -> StudyRecord:
    """Return what a search found.

    Raises:
        ArtifactNotFoundError: there is no such artifact.
        ConfigError: it is no study.
        CorruptArtifactError: it is damaged.
    """
    manifest = store.manifest(artifact_id)
    if not isinstance(manifest.content, StudyContent):
        raise ConfigError(
            f"{artifact_id[:12]} is of kind {manifest.content.kind}, no study. `impart ls` lists studies."
        )
    with store.local_file(manifest, STUDY_FILE, verified=True) as path:
        return _read(path)


def tally_of(tally: Tally) -> dict[str, float]:
    """Return a tally as it is kept with a study."""
    return {name: round(value, 3) for name, value in vars(tally).items()}


def _read(path: Path) -> StudyRecord:
    try:
        return StudyRecord.model_validate(json.loads(path.read_bytes()))
    except (ValueError, RecursionError, ValidationError, ConfigError) as error:
        raise CorruptArtifactError(f"{path} does not hold a study: {error}") from error
