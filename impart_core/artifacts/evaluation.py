"""Evaluations: one for each model and task, so that a new task repeats no finished one."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from impart_core.artifacts.delta import Delta
from impart_core.base.canonical import canonical_json
from impart_core.checkpoint.digest import carried_digests, checkpoint_id, tensor_digests
from impart_core.checkpoint.index import Checkpoint
from impart_core.evaluation.catalogue import task_fingerprint
from impart_core.evaluation.result import Evaluation
from impart_core.store.manifest import Content, Manifest, Measured, register
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import Reuse, publish
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

RESULTS_FILE = "results.json"
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
        """Return the tasks and the split."""
        return f"{', '.join(self.metrics)} ({recipe.config.get('split', 'all')})"

    def checkpoints(self, recipe: Recipe) -> dict[str, str]:
        """Return the checkpoint that it measured, if it did not measure a delta."""
        return {"checkpoint": str(recipe.inputs["checkpoint"])} if "checkpoint" in recipe.inputs else {}

    def measurements(self) -> dict[str, dict[str, Measured]]:
        """Return the metrics."""
        return self.metrics


def evaluation_recipe(model: Checkpoint | Delta, task: str, split: str, limit: int | None, seed: int = 0) -> Recipe:
    """Return what makes an evaluation: the model by content, the task's definition, and which items.

    Args:
        model: a checkpoint, or a delta, which stands for the checkpoint that is rebuilt from it.
        task: lm-eval task name.
        split: which split.
        limit: number of items; None for all.
        seed: the harness's seed.
    """
    if isinstance(model, Delta):
        inputs: dict[str, object] = {"delta": model.manifest.id}
    else:
        inputs = {"checkpoint": checkpoint_id(tensor_digests(model)), "files": carried_digests(model)}
    config = {
        "task": task,
        "definition": task_fingerprint([task])[task],
        "split": split,
        "limit": limit,
        "seed": seed,
    }
    return Recipe(operation="evaluate", version=VERSIONS["evaluation"], config=config, inputs=inputs)


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
    files = {RESULTS_FILE: lambda path: path.write_bytes(text)}
    return publish(store, recipe, content, files, watch, parents=tuple(parents), reuse=reuse)
