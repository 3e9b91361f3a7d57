"""Stages: a delta looked for, or its published blocks gathered under one manifest, and named."""

from impart_tasks.references import DeltaJob, DeltaResult
from impart_tasks.resources import NETWORK, stage
from impart_tasks.watch import start_watch

from impart_core.artifacts.delta import Delta, examine_delta, publish_delta
from impart_core.checkpoint.index import open_checkpoint
from impart_core.store.catalog import entry_of, note
from impart_core.store.names import set_ref
from impart_core.store.store import Store


@stage("find delta", "find {job.name}", NETWORK)
def find_delta(job: DeltaJob) -> DeltaResult:
    """Look for a delta of which every part is whole, and name it where there is one."""
    store = Store(job.store)
    found = examine_delta(store, job.recipe.id, reread=job.trust.reread)
    if found.delta is None:
        return DeltaResult(faults=found.faults)
    if job.name:
        set_ref(store, job.name, job.recipe.id, why="compress")
    return _result(found.delta)


@stage("gather delta", "gather {job.name}", NETWORK)
def gather_delta(job: DeltaJob) -> DeltaResult:
    """Publish the delta that points to these blocks, name it, and enter all that was made in the catalogue."""
    watch, store = start_watch(base=job.base, finetuned=job.finetuned), Store(job.store)
    refresh = job.trust.refreshes("gather")
    before = store.lookup(job.recipe.id) if refresh else None
    blocks = [entry.id for entry in job.made if entry.kind == "block"]
    trust = {"reread": job.trust.reread, "replace": refresh}
    delta = publish_delta(store, job.recipe, open_checkpoint(job.finetuned), blocks, watch, **trust)
    manifest = delta.manifest
    if job.name:
        set_ref(store, job.name, manifest.id, why="compress")
    note(store, [*job.made, entry_of(manifest)])
    changed = before is not None and (before.files, before.content) != (manifest.files, manifest.content)
    return _result(delta).model_copy(update={"changed": changed})


def _result(delta: Delta) -> DeltaResult:
    return DeltaResult(
        id=delta.manifest.id,
        cr_projection=delta.content.cr_projection,
        cr_model=delta.cr_model,
        bytes=delta.bytes,
        saved_bytes=delta.saved_bytes,
        blocks=delta.content.blocks,
    )
