"""Stage: one block's delta, sparsified."""

from collections.abc import Callable

from impart_tasks.references import BlockJob, BlockResult
from impart_tasks.resources import CPU, patiently, stage
from impart_tasks.watch import start_watch

from impart_core.artifacts.block import publish_block
from impart_core.artifacts.factors import stored_factors
from impart_core.artifacts.scales import read_scales
from impart_core.base.numerics import release_memory, resolve_device, return_large_memory_at_once
from impart_core.blocks.encode import compress_block
from impart_core.codec.format import EncodedTensor
from impart_core.store.catalog import entry_of
from impart_core.store.manifest import Manifest
from impart_core.store.store import Store

Publish = Callable[[dict[str, EncodedTensor]], Manifest]


@stage("sparsify block", "sparsify {job.block.name}", CPU)
def sparsify_block(job: BlockJob) -> BlockResult:
    """Compress one block and publish it, unless the store holds it whole already."""

    def make(store: Store, publish: Publish) -> Manifest:
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
        return publish(tensors)

    return made_or_found(job, make)


def made_or_found(job: BlockJob, make: Callable[[Store, Publish], Manifest]) -> BlockResult:
    """Return what a stage has to say of a block: of the one that the store holds, or else of the one that it makes.

    Args:
        job: the block's.
        make: computes its tensors, hands them over to be published, and returns the manifest in force.
    """
    return_large_memory_at_once()
    watch, store = start_watch(base=job.base, finetuned=job.finetuned), Store(job.store)
    trust = {"reread": job.trust.reread, "replace": job.trust.refreshes("sparsify")}
    found = store.examine(job.recipe.id, reread=job.trust.reread)
    manifest = None if trust["replace"] else found.manifest
    cached = manifest is not None
    if manifest is None:
        manifest = make(
            store,
            lambda tensors: patiently(
                f"publish {job.block.name}",
                lambda: publish_block(store, job.recipe, job.block.name, tensors, watch, **trust),
            ),
        )
        release_memory()
    return BlockResult(
        entry=entry_of(manifest),
        cached=cached,
        fault=found.fault,
        changed=found.manifest is not None and found.manifest.files != manifest.files,
        name=job.block.name,
        bytes=sum(entry.size for entry in manifest.files),
        seconds=watch.seconds,
    )
