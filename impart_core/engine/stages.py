"""The stages of a run. Each asks the store first, publishes what it makes, and returns a small reference.

A stage is safe to repeat: of several that make the same artifact, one publishes it and the others return that one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from impart_core.artifacts.block import BlockContent, block_content, publish_block
from impart_core.artifacts.calibration_text import (
    CalibrationContent,
    calibration_recipe,
    publish_calibration,
    read_calibration,
)
from impart_core.artifacts.delta import Delta, examine_delta, publish_delta
from impart_core.artifacts.factors import FactorsContent, publish_factors, stored_factors
from impart_core.artifacts.scales import read_scales
from impart_core.artifacts.sensitivity import read_sensitivity
from impart_core.base.numerics import one_thread_per_kernel, release_memory, resolve_device, return_large_memory_at_once
from impart_core.base.retry import GPU, NETWORK, patiently
from impart_core.blocks.decompose import decompose_block
from impart_core.blocks.encode import Encoder, Lossy
from impart_core.blocks.gains import with_gains
from impart_core.blocks.rebuild import rebuild_tensor
from impart_core.calibrate.text import PUBLISHED, read_tokens, require_taken
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import Checkpoint
from impart_core.codec.format import CODES_FILE, BlockFile, EncodedTensor
from impart_core.delta.load import load_matrix
from impart_core.engine.executor import stage
from impart_core.engine.needs import group_need
from impart_core.engine.references import (
    BlockGroup,
    BlockJob,
    DeltaJob,
    DeltaResult,
    FactorsResult,
    Made,
    TextJob,
)
from impart_core.store.catalog import entry_of, note
from impart_core.store.manifest import Manifest
from impart_core.store.names import require_whole, resolve, set_ref
from impart_core.store.pins import pin
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import Reuse, made_or_found
from impart_core.store.store import Store


@stage("digest checkpoint", "digest {checkpoint.location}", NETWORK)
def digest_checkpoint(checkpoint: Checkpoint, refresh: bool = False) -> dict[str, str]:
    """Return the digest of every tensor of a checkpoint, remembered between runs."""
    return tensor_digests(checkpoint, refresh=refresh)


@stage("read calibration text", "tokens of {job.text.source}", NETWORK)
def read_calibration_text(job: TextJob, least: int = 1) -> Made:
    """Turn calibration text into tokens, `least` or more a sequence, and publish them unless the store holds them."""
    watch, store = job.run.watch(text=job.text.source), job.run.open_store()
    if job.text.source.startswith(PUBLISHED):
        tokens = read_calibration(store, resolve(store, job.text.source.removeprefix(PUBLISHED)))
        require_taken(tokens, job.finetuned, least)
    else:
        tokens = read_tokens(job.text, job.finetuned)
    recipe = calibration_recipe(tokens)

    def make() -> Manifest:
        with pin(store, [recipe.id]):
            manifest = publish_calibration(store, recipe, tokens, watch)
            note(store, [entry_of(manifest)])
            return manifest

    reuse = Reuse(reread=True, imported=job.run.trust.imported)  # a file of kilobytes
    outcome = made_or_found(store, recipe.id, make, kind=CalibrationContent, reuse=reuse)
    return Made.of(outcome, watch)


@stage("decompose blocks", "decompose {group.name}", GPU, group_need)
def decompose_blocks(group: BlockGroup) -> tuple[FactorsResult | None, ...]:
    """Decompose blocks and publish their factors, unless the store holds them, or already what they are for."""
    return tuple(_decompose_block(job) for job in group.jobs)


def _decompose_block(job: BlockJob) -> FactorsResult | None:
    return_large_memory_at_once()
    watch, store, trust = job.run.watch(), job.run.open_store(), job.run.trust
    recipe = job.factors
    present = store.lookup(job.recipe.id, reread=trust.reread, imported=trust.imported)
    needed = trust.refreshes("sparsify") or present is None
    if recipe is None or not needed:
        return None
    reuse = trust.reuse("decompose", reread=True)

    def make() -> Manifest:
        device = resolve_device(job.run.device)
        factors = decompose_block(job.pairs, job.block, job.config, device=device, digests=job.digests())
        manifest = patiently(
            f"publish the factors of {job.block.name}",
            lambda: publish_factors(store, recipe, job.block.name, factors, watch, replace=reuse.replace),
        )
        factors.clear()
        release_memory()
        return manifest

    # Much is made from factors: their file is read, to be held against its digest.
    outcome = made_or_found(store, recipe.id, make, kind=FactorsContent, reuse=reuse)
    content = outcome.manifest.content
    assert isinstance(content, FactorsContent)
    fallbacks = sum(entry.fallbacks for entry in content.matrices.values())
    return FactorsResult.of(outcome, watch, matrices=len(content.matrices), fallbacks=fallbacks)


@stage("sparsify blocks", "sparsify {group.name}", GPU, group_need)
def sparsify_blocks(group: BlockGroup, read_again: bool = False) -> tuple[Made, ...]:
    """Compress blocks and publish each, unless the store holds it whole already.

    `read_again` says that the run will soon read them back, as what embeds the text of a calibration is.
    """
    return tuple(_sparsify_block(job, read_again) for job in group.jobs)


def _sparsify_block(job: BlockJob, read_again: bool) -> Made:
    return_large_memory_at_once()
    watch, store = job.run.watch(), job.run.open_store()

    def make() -> Manifest:
        if job.before and job.scales:
            tensors = _with_gains(store, job, job.before, job.scales)
            return publish_tensors(job, store, tensors, watch, kept_factors=False, read_again=read_again)
        device = resolve_device(job.run.device)
        factors = job.factors.id if job.factors else None
        sensitivity = read_sensitivity(store, job.sensitivity.id) if job.sensitivity else {}
        with stored_factors(store, factors, imported=job.run.trust.imported) as stored, _lossy_of(store, job) as lossy:
            encoder = Encoder(job.config, stored, device, job.digests(), lossy, sensitivity)
            tensors = encoder.block(job.pairs, job.block)
        return publish_tensors(job, store, tensors, watch, kept_factors=stored is not None, read_again=read_again)

    return block_made_or_found(job, store, make, watch)


@contextmanager
def _lossy_of(store: Store, job: BlockJob) -> Iterator[Lossy | None]:
    """Open the lossy block that residuals are against, if they are; give what is rebuilt of it by name."""
    if job.base is None:
        yield None
        return
    tensors, manifest = job.base.tensors, store.manifest(job.recipe.inputs["over"])
    with store.local_file(manifest, CODES_FILE, verified=True) as path:
        file = BlockFile(path)
        yield lambda name: rebuild_tensor(name, tensors, file.headers[name], file, portable=True)


def _with_gains(store: Store, job: BlockJob, before: str, scales: str) -> dict[str, EncodedTensor]:
    """Return the tensors of a published block at gains that were trained."""
    gains, manifest = read_scales(store, scales), store.manifest(before)
    measured = {name: entry.fidelity for name, entry in block_content(manifest).tensors.items()}

    def delta_of(name: str) -> torch.Tensor:
        return load_matrix(job.pairs[name], job.pairs[name], job.digests()).delta()

    with store.local_file(manifest, CODES_FILE, verified=True) as path, one_thread_per_kernel():
        return with_gains(BlockFile(path), gains, measured, delta_of)


def publish_tensors(
    job: BlockJob,
    store: Store,
    tensors: dict[str, EncodedTensor],
    watch: Stopwatch,
    *,
    kept_factors: bool,
    read_again: bool,
) -> Manifest:
    """Publish a block, and let go of its tensors."""
    name, reuse = job.block.name, _block_reuse(job)
    more = {"kept_factors": kept_factors, "read_again": read_again}
    manifest = patiently(
        f"publish {name}", lambda: publish_block(store, job.recipe, name, tensors, watch, reuse=reuse, **more)
    )
    tensors.clear()
    release_memory()
    return manifest


def _block_reuse(job: BlockJob) -> Reuse:
    """Return how far a block that is there is reused."""
    return job.run.trust.reuse("sparsify")


def block_made_or_found(job: BlockJob, store: Store, make: Callable[[], Manifest], watch: Stopwatch) -> Made:
    """Return a block of the store; it is made where the store does not hold it whole."""
    outcome = made_or_found(store, job.recipe.id, make, kind=BlockContent, reuse=_block_reuse(job))
    return Made.of(outcome, watch)


@stage("find delta", "find {job.name}", NETWORK)
def find_delta(job: DeltaJob) -> DeltaResult:
    """Look for a delta of which every part is whole, and name it where there is one."""
    store = job.run.open_store()
    trust = job.run.trust
    found = examine_delta(store, job.recipe.id, reread=trust.reread, imported=trust.imported)
    if found.delta is None:
        return DeltaResult(faults=found.faults)
    if job.name:
        set_ref(store, job.name, job.recipe.id, why="compress")
    return _delta_result(found.delta)


@stage("gather delta", "gather {job.name}", NETWORK)
def gather_delta(job: DeltaJob) -> DeltaResult:
    """Publish the delta that points to these blocks, name it, and enter all that was made in the catalogue."""
    watch, store, trust = job.run.watch(), job.run.open_store(), job.run.trust
    replace = trust.refreshes("gather")
    before = store.lookup(job.recipe.id) if replace else None
    blocks = [entry.id for entry in job.made if entry.kind == "block"]
    delta = publish_delta(store, job.recipe, job.finetuned, blocks, watch, reuse=Reuse(trust.reread, replace))
    manifest = delta.manifest
    if job.name:
        require_whole(store, manifest.id, (manifest, *delta.blocks))
        set_ref(store, job.name, manifest.id, why="compress")
    note(store, [*job.made, entry_of(manifest)])
    changed = before is not None and (before.files, before.content) != (manifest.files, manifest.content)
    return _delta_result(delta).model_copy(update={"changed": changed})


def _delta_result(delta: Delta) -> DeltaResult:
    return DeltaResult(
        entry=entry_of(delta.manifest),
        cr_projection=delta.content.cr_projection,
        cr_model=delta.cr_model,
        bytes=delta.bytes,
        saved_bytes=delta.saved_bytes,
        blocks=delta.content.blocks,
    )
