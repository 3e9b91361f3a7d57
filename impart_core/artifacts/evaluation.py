"""Evaluations as artifacts: one for each model and task, so that a new task repeats no finished one."""

from collections.abc import Sequence

from impart_core.artifacts.delta import Delta
from impart_core.artifacts.identity import Recipe, canonical_json
from impart_core.artifacts.manifest import EvaluationContent, Manifest
from impart_core.artifacts.provenance import Stopwatch
from impart_core.artifacts.store import Store, file_entry
from impart_core.checkpoint.digest import carried_digests, checkpoint_id, tensor_digests
from impart_core.checkpoint.index import Checkpoint
from impart_core.evaluate import Evaluation, task_fingerprint
from impart_core.files import scratch_folder

RESULTS_FILE = "results.json"
_VERSION = 1


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
    return Recipe(operation="evaluate", version=_VERSION, config=config, inputs=inputs)


def publish_evaluation(
    store: Store, recipe: Recipe, evaluation: Evaluation, parents: Sequence[str], watch: Stopwatch, **trust: bool
) -> Manifest:
    """Publish what the harness returned; return the manifest in force. `trust` is as in `Store.publish`."""
    content = EvaluationContent(
        metrics={
            task: {name: (metric.value, metric.stderr) for name, metric in result.metrics.items()}
            for task, result in evaluation.tasks.items()
        },
        items={task: result.items for task, result in evaluation.tasks.items()},
    )
    with scratch_folder() as scratch:
        path = scratch / RESULTS_FILE
        path.write_bytes(canonical_json(evaluation.model_dump(mode="json")))
        manifest = Manifest.make(
            recipe,
            parents=tuple(parents),
            files=(file_entry(RESULTS_FILE, path),),
            content=content,
            provenance=watch.provenance(),
        )
        return store.publish(manifest, {RESULTS_FILE: path}, **trust)
