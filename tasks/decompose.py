"""Stage: the factors of one block, which every request on the same two checkpoints shares."""

from impart_tasks.references import BlockJob, FactorsResult
from impart_tasks.resources import GPU, patiently, stage
from impart_tasks.watch import start_watch

from impart_core.artifacts.factors import FactorsContent, publish_factors
from impart_core.base.numerics import release_memory, resolve_device, return_large_memory_at_once
from impart_core.blocks.decompose import decompose_block as decompose
from impart_core.store.catalog import entry_of
from impart_core.store.store import Store


@stage("decompose block", "decompose {job.block.name}", GPU)
def decompose_block(job: BlockJob) -> FactorsResult | None:
    """Decompose one block and publish its factors, unless the store holds them, or already what they are for."""
    return_large_memory_at_once()
    watch, store = start_watch(base=job.base, finetuned=job.finetuned), Store(job.store)
    if job.factors is None:
        return None
    needed = job.trust.refreshes("sparsify") or store.lookup(job.recipe.id, reread=job.trust.reread) is None
    if not needed:
        return None
    recipe, refresh = job.factors, job.trust.refreshes("decompose")
    found = store.examine(recipe.id, reread=True)
    manifest = None if refresh else found.manifest
    cached = manifest is not None
    if manifest is None:
        factors = decompose(
            job.pairs(), job.block, job.config, device=resolve_device(job.device), digests=job.digests()
        )
        manifest = patiently(
            f"publish the factors of {job.block.name}",
            lambda: publish_factors(store, recipe, job.block.name, factors, watch, replace=refresh),
        )
        del factors
        release_memory()
    content = manifest.content
    assert isinstance(content, FactorsContent)
    return FactorsResult(
        entry=entry_of(manifest),
        cached=cached,
        fault=found.fault,
        changed=found.manifest is not None and found.manifest.files != manifest.files,
        name=job.block.name,
        matrices=len(content.matrices),
        fallbacks=sum(entry.fallbacks for entry in content.matrices.values()),
        seconds=watch.seconds,
    )
