"""Stage: the factors of one block, which every request on the same two checkpoints shares."""

from impart_core.artifacts.factors import lookup_factors, publish_factors
from impart_core.artifacts.manifest import FactorsContent
from impart_core.artifacts.store import Store
from impart_core.decompose import decompose_block as decompose
from impart_core.numerics import release_memory, resolve_device
from tasks.references import BlockJob, FactorsResult
from tasks.resources import stage
from tasks.watch import start_watch


@stage("decompose block", "decompose {job.block.name}")
def decompose_block(job: BlockJob) -> FactorsResult | None:
    """Decompose one block and publish its factors, unless the store holds them, or already what they are for."""
    watch, store = start_watch(base=job.base, finetuned=job.finetuned), Store(job.store)
    if job.factors is None or store.lookup(job.recipe.id) is not None:
        return None
    manifest = lookup_factors(store, job.factors.id)
    cached = manifest is not None
    if manifest is None:
        factors = decompose(
            job.pairs(), job.block, job.config, device=resolve_device(job.device), digests=job.digests()
        )
        manifest = publish_factors(store, job.factors, job.block.name, factors, watch)
        del factors
        release_memory()
    content = manifest.content
    assert isinstance(content, FactorsContent)
    return FactorsResult(
        name=job.block.name,
        id=manifest.id,
        cached=cached,
        matrices=len(content.matrices),
        fallbacks=sum(entry.fallbacks for entry in content.matrices.values()),
        seconds=watch.seconds,
    )
