"""Stage: a model measured by lm-evaluation-harness."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from impart_tasks.references import EvaluationJob, EvaluationResult
from impart_tasks.resources import GPU, patiently, stage
from impart_tasks.watch import start_watch

from impart_core.apply.dense import reconstruct
from impart_core.artifacts.delta import Delta, open_delta
from impart_core.artifacts.evaluation import EvaluationContent, evaluation_recipe, publish_evaluation
from impart_core.base.numerics import resolve_device
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.store.catalog import entry_of, note
from impart_core.store.manifest import Manifest
from impart_core.store.pins import pinned
from impart_core.store.store import Store


@stage("evaluate model", "evaluate {job.label} on {job.task}", GPU)
def evaluate_model(job: EvaluationJob) -> EvaluationResult:
    """Evaluate one model on one task and publish the metrics, unless the store holds them already.

    A delta is rebuilt into scratch first; nothing is rebuilt when its metrics are there.
    """
    watch = start_watch(base=job.base) if job.base else start_watch(checkpoint=job.model)
    store = Store(job.store)
    model = open_delta(store, job.model) if job.base else open_checkpoint(job.model)
    recipe = evaluation_recipe(model, job.task, job.split, job.limit)
    trust = {"reread": job.trust.reread, "replace": job.trust.refresh_from is not None}
    before = store.examine(recipe.id, reread=job.trust.reread)
    manifest = None if trust["replace"] else before.manifest
    cached = manifest is not None
    if manifest is None:
        from impart_core.evaluate import evaluate  # loads transformers and lm-eval

        with _folder_of(model, job) as folder:
            device = str(resolve_device(job.device))
            found = evaluate(folder, [job.task], split=job.split, limit=job.limit, device=device)
        parents = [model.manifest.id] if isinstance(model, Delta) else []

        def publish() -> Manifest:
            with pinned(store, [recipe.id]):
                made = publish_evaluation(store, recipe, found, parents, watch, **trust)
                note(store, [entry_of(made)])
                return made

        manifest = patiently(f"publish {job.label} on {job.task}", publish)
    content = manifest.content
    assert isinstance(content, EvaluationContent)
    return EvaluationResult(
        id=manifest.id,
        task=job.task,
        cached=cached,
        fault=before.fault,
        changed=before.manifest is not None and before.manifest.content != manifest.content,
        metrics=content.metrics,
        items=content.items,
        seconds=watch.seconds,
    )


@contextmanager
def _folder_of(model: Checkpoint | Delta, job: EvaluationJob) -> Iterator[Path]:
    if isinstance(model, Checkpoint):
        yield Path(model.location)
        return
    with TemporaryDirectory(prefix="impart-") as scratch:
        folder = Path(scratch) / "model"
        reconstruct(model, open_checkpoint(str(job.base)), folder)
        yield folder
