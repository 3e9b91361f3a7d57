"""Trials: the scores of one model on a range of one task's items, for whoever asks for the same.

A model that fails is a trial too, so that it is not made and measured again each time that a search asks for it. What
the model itself is the reason of stays: NaN outputs, matrices that cannot be merged, a checkpoint that no library
loads. What may pass is tried again whenever it is asked for, and replaced: too little memory, a package that is not
installed, a file that could not be read. What says nothing of the model is no trial: a store or a network that does
not answer ends the work with an error.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from impart_core.artifacts.evaluation import how_measured
from impart_core.base.canonical import canonical_json
from impart_core.base.errors import CorruptArtifactError
from impart_core.evaluation.catalogue import USUAL, task_fingerprint
from impart_core.evaluation.item_scores import joined, means
from impart_core.evaluation.items import ItemRange
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import ItemScores, Measure, Split
from impart_core.store.manifest import Content, Manifest, Measured, register
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import Reuse, Writer, publish
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

SCORES_FILE = "scores.json"
VERSIONS = {"trial": 1}


@register
class TrialContent(Content):
    """A trial: the mean of each metric with its standard error, or why there is none.

    Attributes:
        metrics: value and standard error by metric; empty where the model failed.
        items: number of items with scores; 0 where the model failed.
        failure: why the model has no scores, as a sentence; None where it has.
        may_pass: whether the reason may be gone when it is tried again.
    """

    kind: Literal["trial"] = "trial"
    plural: ClassVar[str] = "trials"
    colour: ClassVar[str] = "#f7e3d0"
    part_of: ClassVar[str | None] = "study"
    files: ClassVar[tuple[str, ...]] = (SCORES_FILE,)
    metrics: dict[str, Measured]
    items: int = Field(ge=0)
    failure: str | None = None
    may_pass: bool = False

    def summary(self, recipe: Recipe) -> str:
        """Return the task, the range of items, the split, and the options that are not as usual."""
        start, stop = recipe.config["items"]
        failed = "failed on " if self.failure is not None else ""
        return f"{failed}{recipe.config['task']} items {start} to {stop} ({how_measured(recipe)})"

    def checkpoints(self, recipe: Recipe) -> dict[str, str]:
        """Return the checkpoint that it measured, if it was measured as one."""
        return {"checkpoint": str(recipe.inputs["checkpoint"])} if "checkpoint" in recipe.inputs else {}

    def check(self, name: str, path: Path) -> None:  # noqa: ARG002 - it has one file
        """Check that the scores have the means that the manifest tells."""
        scores = _read(path)
        if scores is None:
            told: dict[str, Measured] = {}
        else:
            told = {metric: (found.value, found.stderr) for metric, found in means(scores).items()}
        if told != self.metrics or self.items != (len(scores.digests) if scores else 0):
            raise CorruptArtifactError(f"{path} does not hold the scores whose means its manifest tells.")


def trial_recipe(
    model: Mapping[str, object],
    task: str,
    items: ItemRange,
    split: Split,
    measure: Measure,
    options: MeasureOptions = USUAL,
) -> Recipe:
    """Return what makes a trial: the model by content, the task's definition, and which items.

    Args:
        model: what stands for the model, by role: see `model_inputs`; or, so that no tensor of it has to be computed,
            `merged`, with the id of the recipe that merges it, or `compressed`, with that of `foreseen_recipe`.
        task: lm-eval's name of the task.
        items: the range, by place in the task's order of items.
        split: which split.
        measure: the task's own metrics, or `answer_loss`.
        options: how it is measured; whether samples are kept is no part of it.
    """
    config: dict[str, object] = {
        "task": task,
        "definition": task_fingerprint([task], options)[task],
        "split": split,
        "items": list(items),
        "measure": measure,
        "seed": options.seed,
    }
    if unusual := options.model_copy(update={"log_samples": False}).of_recipe():
        config["options"] = unusual
    return Recipe(operation="trial", version=VERSIONS["trial"], config=config, inputs=dict(model))


def publish_trial(
    store: Store,
    recipe: Recipe,
    scores: ItemScores,
    parents: tuple[str, ...],
    watch: Stopwatch,
    *,
    reuse: Reuse = Reuse(),  # noqa: B008 - frozen
) -> Manifest:
    """Publish scores; return the manifest in force, which is theirs where a failure that may pass was there."""
    metrics = {name: (metric.value, metric.stderr) for name, metric in means(scores).items()}
    content = TrialContent(metrics=metrics, items=len(scores.digests))
    files: dict[str, Writer] = {
        SCORES_FILE: lambda path: path.write_bytes(canonical_json(scores.model_dump(mode="json")))
    }
    manifest = publish(store, recipe, content, files, watch, parents=parents, reuse=reuse)
    if is_failure(manifest):
        replaced = Reuse(reuse.reread, replace=True, imported=reuse.imported)
        manifest = publish(store, recipe, content, files, watch, parents=parents, reuse=replaced)
    return manifest


def publish_failure(
    store: Store, recipe: Recipe, failure: str, parents: tuple[str, ...], watch: Stopwatch, *, may_pass: bool
) -> Manifest:
    """Publish why a model has no scores; return the manifest in force, which is that of scores where there are any.

    Args:
        store: where it goes.
        recipe: what makes the trial.
        failure: the reason, as a sentence.
        parents: ids of artifacts that the model was made from.
        watch: started when the work began.
        may_pass: whether it is to be tried again when the trial is asked for again.
    """
    content = TrialContent(metrics={}, items=0, failure=failure, may_pass=may_pass)
    files: dict[str, Writer] = {SCORES_FILE: lambda path: path.write_bytes(canonical_json(None))}
    manifest = publish(store, recipe, content, files, watch, parents=parents)
    if is_failure(manifest) and not may_pass:
        manifest = publish(store, recipe, content, files, watch, parents=parents, reuse=Reuse(replace=True))
    return manifest


def is_failure(manifest: Manifest) -> bool:
    """Return whether a trial has no scores."""
    return isinstance(manifest.content, TrialContent) and manifest.content.failure is not None


def settles(manifest: Manifest) -> bool:
    """Return whether a trial need not be made again: it has scores, or the model is the reason why it has none."""
    return isinstance(manifest.content, TrialContent) and not manifest.content.may_pass


def read_scores(store: Store, trials: Sequence[str]) -> ItemScores:
    """Return the scores item by item of trials of one model on ranges of one task that follow one another.

    Raises:
        ArtifactNotFoundError: there is no such trial.
        CorruptArtifactError: it is damaged, another artifact, or the trial of a model that failed.
    """
    found = []
    for trial in trials:
        manifest = store.manifest(trial)
        if not isinstance(manifest.content, TrialContent):
            raise CorruptArtifactError(f"Artifact {trial[:12]} is of the kind {manifest.content.kind!r}, no trial.")
        with store.local_file(manifest, SCORES_FILE, verified=True) as path:
            scores = _read(path)
        if scores is None:
            raise CorruptArtifactError(f"Trial {trial[:12]} has no scores: {manifest.content.failure}")
        found.append(scores)
    return joined(found)


def _read(path: Path) -> ItemScores | None:
    """Return the scores that a file holds, None where it says that there are none."""
    try:
        value: Mapping[str, Any] | None = json.loads(path.read_bytes())
        scores = None if value is None else ItemScores.model_validate(value)
    except (ValueError, RecursionError, ValidationError) as error:
        raise CorruptArtifactError(f"{path} does not hold scores: {error}") from error
    if scores is None:
        return None
    items = scores.items[1] - scores.items[0]
    lengths = {items, len(scores.digests), *map(len, scores.scores.values()), len(scores.tokens) or items}
    if lengths != {items} or items < 1 or not scores.scores:
        raise CorruptArtifactError(f"{path} does not have a score of each of its {items} items.")
    return scores
