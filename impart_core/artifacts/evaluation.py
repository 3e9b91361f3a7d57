"""Evaluations: one for each model and task, so that a new task repeats no finished one."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from impart_core.artifacts.delta import Delta
from impart_core.base.canonical import canonical_json
from impart_core.checkpoint.digest import carried_digests, checkpoint_id, tensor_digests
from impart_core.checkpoint.index import Checkpoint
from impart_core.evaluation.catalogue import USUAL, task_fingerprint
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import Evaluation
from impart_core.store.manifest import Content, Manifest, Measured, register
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import Reuse, publish
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

RESULTS_FILE, SAMPLES_FILE = "results.json", "samples.jsonl"
VERSIONS = {"evaluation": 1}


@register
class EvaluationContent(Content):
    """An evaluation: for each task, each metric's value and standard error, and the number of items."""

    kind: Literal["evaluation"] = "evaluation"
    plural: ClassVar[str] = "evaluations"
    colour: ClassVar[str] = "#d6e4fa"
    listed: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    repeats: ClassVar[bool] = False  # its file tells how long it took
    metrics: dict[str, dict[str, Measured]]
    items: dict[str, int]

    def summary(self, recipe: Recipe) -> str:
        """Return the tasks, the split, and the options that are not as usual."""
        return f"{', '.join(self.metrics)} ({how_measured(recipe)})"

    def checkpoints(self, recipe: Recipe) -> dict[str, str]:
        """Return the checkpoint that it measured, if it did not measure a delta."""
        return {"checkpoint": str(recipe.inputs["checkpoint"])} if "checkpoint" in recipe.inputs else {}

    def measurements(self) -> dict[str, dict[str, Measured]]:
        """Return the metrics."""
        return self.metrics


def how_measured(recipe: Recipe) -> str:
    """Return an evaluation's split, and its options that are not as usual ("test, num_fewshot 5"), for people."""
    options, seed = recipe.config.get("options"), recipe.config.get("seed")
    told = {**(options if isinstance(options, dict) else {}), **({"seed": seed} if seed else {})}
    return ", ".join([str(recipe.config.get("split", "all")), *(f"{key} {value}" for key, value in told.items())])


def evaluation_recipe(
    model: Checkpoint | Delta, task: str, split: str, limit: int | None, options: MeasureOptions = USUAL
) -> Recipe:
    """Return what makes an evaluation: the model by content, the task's definition, and which items.

    Args:
        model: a checkpoint, or a delta, which stands for the checkpoint that is rebuilt from it.
        task: lm-eval task name.
        split: which split.
        limit: number of items; None for all.
        options: how it is measured.
    """
    config: dict[str, object] = {
        "task": task,
        "definition": task_fingerprint([task], options)[task],
        "split": split,
        "limit": limit,
        "seed": options.seed,
    }
    if unusual := options.of_recipe():
        config["options"] = unusual
    return Recipe(operation="evaluate", version=VERSIONS["evaluation"], config=config, inputs=model_inputs(model))


def model_inputs(model: Checkpoint | Delta) -> dict[str, object]:
    """Return what stands for a model in the recipe of what measures it."""
    if isinstance(model, Delta):
        return {"delta": model.manifest.id}
    return {"checkpoint": checkpoint_id(tensor_digests(model)), "files": carried_digests(model)}


def publish_evaluation(
    store: Store,
    recipe: Recipe,
    evaluation: Evaluation,
    parents: Sequence[str],
    watch: Stopwatch,
    *,
    reuse: Reuse = Reuse(),  # noqa: B008 - frozen
) -> Manifest:
    """Publish what the harness returned; return the manifest in force. `reuse` is as in `publish`."""
    content = EvaluationContent(
        metrics={
            task: {name: (metric.value, metric.stderr) for name, metric in result.metrics.items()}
            for task, result in evaluation.tasks.items()
        },
        items={task: result.items for task, result in evaluation.tasks.items()},
    )
    text = canonical_json(evaluation.model_dump(mode="json"))
    files: dict[str, Callable[[Path], object]] = {RESULTS_FILE: lambda path: path.write_bytes(text)}
    if evaluation.samples:
        files[SAMPLES_FILE] = lambda path: _write_samples(path, evaluation)
    return publish(store, recipe, content, files, watch, parents=tuple(parents), reuse=reuse)


def _write_samples(path: Path, evaluation: Evaluation) -> None:
    """Write a line of JSON for each item: its task, and lm-eval's record of it."""
    with path.open("w", encoding="utf-8") as file:
        for task, samples in evaluation.samples.items():
            for sample in samples:
                file.write(json.dumps({"task": task, **sample}, default=str, ensure_ascii=False) + "\n")
