"""Stage: published blocks gathered under one manifest, and given a name."""

from impart_core.artifacts.delta import publish_delta
from impart_core.artifacts.refs import set_ref
from impart_core.artifacts.store import Store
from impart_core.checkpoint.index import open_checkpoint
from tasks.references import DeltaJob
from tasks.resources import stage
from tasks.watch import start_watch


@stage("gather delta", "gather {job.name}")
def gather_delta(job: DeltaJob) -> str:
    """Publish the delta that points to these blocks, name it, and return its artifact id."""
    watch, store = start_watch(base=job.base, finetuned=job.finetuned), Store(job.store)
    manifest = publish_delta(store, job.recipe, open_checkpoint(job.finetuned), job.blocks, watch)
    if job.name:
        set_ref(store, job.name, manifest.id, why="compress")
    return manifest.id
