"""Stage: one block's delta, sparsified."""

from impart_core.artifacts.delta import publish_block
from impart_core.artifacts.factors import stored_factors
from impart_core.artifacts.provenance import Stopwatch
from impart_core.artifacts.store import Store
from impart_core.compress import compress_block
from impart_core.numerics import release_memory, resolve_device
from tasks.references import BlockJob, BlockResult
from tasks.resources import stage


@stage("sparsify block", "sparsify {job.block.name}")
def sparsify_block(job: BlockJob) -> BlockResult:
    """Compress one block and publish it, unless the store holds it whole already."""
    watch, store = Stopwatch(), Store(job.store)
    manifest = store.lookup(job.recipe.id)
    cached = manifest is not None
    if manifest is None:
        with stored_factors(store, job.factors.id if job.factors else None) as stored:
            tensors = compress_block(
                job.pairs(),
                job.block,
                job.config,
                stored=stored,
                device=resolve_device(job.device),
                digests=job.digests(),
            )
        manifest = publish_block(store, job.recipe, job.block.name, tensors, watch)
        del tensors
        release_memory()
    return BlockResult(
        name=job.block.name,
        id=manifest.id,
        parents=manifest.parents,
        cached=cached,
        bytes=sum(entry.size for entry in manifest.files),
        seconds=watch.seconds,
    )
