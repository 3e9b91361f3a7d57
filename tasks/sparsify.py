"""Stage: one block's delta, sparsified."""

from impart_core.artifacts.calibration import read_scales
from impart_core.artifacts.catalog import entry_of
from impart_core.artifacts.delta import publish_block
from impart_core.artifacts.factors import stored_factors
from impart_core.artifacts.manifest import Manifest
from impart_core.artifacts.provenance import Stopwatch
from impart_core.artifacts.store import Found, Store
from impart_core.compress import compress_block
from impart_core.numerics import release_memory, resolve_device, return_large_memory_at_once
from tasks.references import BlockJob, BlockResult
from tasks.resources import CPU, patiently, stage
from tasks.watch import start_watch


@stage("sparsify block", "sparsify {job.block.name}", CPU)
def sparsify_block(job: BlockJob) -> BlockResult:
    """Compress one block and publish it, unless the store holds it whole already."""
    return_large_memory_at_once()
    watch, store = start_watch(base=job.base, finetuned=job.finetuned), Store(job.store)
    trust = {"reread": job.trust.reread, "replace": job.trust.refreshes("sparsify")}
    found = store.examine(job.recipe.id, reread=job.trust.reread)
    manifest = None if trust["replace"] else found.manifest
    cached = manifest is not None
    if manifest is None:
        scales = read_scales(store, job.scales.id) if job.scales else None
        with stored_factors(store, job.factors.id if job.factors else None) as stored:
            tensors = compress_block(
                job.pairs(),
                job.block,
                job.config,
                stored=stored,
                scales=scales,
                device=resolve_device(job.device),
                digests=job.digests(),
            )
        manifest = patiently(
            f"publish {job.block.name}",
            lambda: publish_block(store, job.recipe, job.block.name, tensors, watch, **trust),
        )
        del tensors
        release_memory()
    return block_result(job, manifest, found, cached, watch)


def block_result(job: BlockJob, manifest: Manifest, found: Found, cached: bool, watch: Stopwatch) -> BlockResult:
    """Return what a stage has to say of a block that it made or found.

    Args:
        job: the block's.
        manifest: the one in force.
        found: what was there before.
        cached: whether that was reused.
        watch: the stage's.
    """
    return BlockResult(
        entry=entry_of(manifest),
        cached=cached,
        fault=found.fault,
        changed=found.manifest is not None and found.manifest.files != manifest.files,
        name=job.block.name,
        bytes=sum(entry.size for entry in manifest.files),
        seconds=watch.seconds,
    )
