"""Stages: calibration text as tokens, a decoder layer compressed on what it is given for them, scales distilled."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress

import torch
from impart_tasks.references import BlockResult, DistilJob, LayerJob, MadeText, ScalesResult, TextJob
from impart_tasks.resources import GPU, NETWORK, patiently, stage
from impart_tasks.sparsify import Publish, made_or_found
from impart_tasks.watch import start_watch

from impart_core.apply.dense import rebuild_tensor
from impart_core.artifacts.activations import Spill, open_activations
from impart_core.artifacts.calibration_text import calibration_recipe, publish_calibration, read_calibration
from impart_core.artifacts.factors import stored_factors
from impart_core.artifacts.scales import publish_scales
from impart_core.base.errors import CorruptArtifactError
from impart_core.base.files import scratch_folder
from impart_core.base.numerics import default_workers, release_memory, resolve_device
from impart_core.base.parallel import at_once
from impart_core.blocks.calibrated import compress_layer, run_layer
from impart_core.calibrate.layer import Batch, batch_size
from impart_core.calibrate.model import CausalModel
from impart_core.calibrate.text import read_tokens
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.pairing import pair_tensors
from impart_core.codec.format import CODES_FILE, BlockFile
from impart_core.store.catalog import entry_of, note
from impart_core.store.manifest import Manifest
from impart_core.store.pins import pinned
from impart_core.store.provenance import Stopwatch
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store


@stage("read calibration text", "tokens of {job.text.source}", NETWORK)
def read_calibration_text(job: TextJob) -> MadeText:
    """Turn calibration text into tokens and publish these, unless the store holds them."""
    watch, store = start_watch(finetuned=job.finetuned, text=job.text.source), Store(job.store)
    tokens = read_tokens(job.text, open_checkpoint(job.finetuned))
    recipe = calibration_recipe(tokens)
    found = store.examine(recipe.id, reread=True)  # a file of kilobytes
    manifest = found.manifest
    cached = manifest is not None
    if manifest is None:
        with pinned(store, [recipe.id]):
            manifest = publish_calibration(store, recipe, tokens, watch)
            note(store, [entry_of(manifest)])
    sequences, length = tokens.shape
    return MadeText(
        entry=entry_of(manifest),
        cached=cached,
        fault=found.fault,
        sequences=sequences,
        length=length,
        seconds=watch.seconds,
    )


@stage("quantise layer", "quantise {job.job.block.name}", GPU)
def quantize_layer(job: LayerJob, workers: int | None = None) -> BlockResult:
    """Compress one decoder layer on what the layers before it give, unless the store holds it whole already.

    Layers come one after the other, so that the run's workers, by default one for each core, share the work on each.

    What it gives in turn is published for the next one. Where what it is given is not there, because a run ended
    between the two or it was cleaned up, the layers before it are run again, none is compressed again.
    """
    own = job.job

    def make(store: Store, publish: Publish) -> Manifest:
        chain = _Chain(job, store)
        with ExitStack() as stack:
            if chain.device.type == "cpu":
                stack.enter_context(at_once(workers or default_workers()))
            batches = chain.inputs(len(job.before), stack)
            stored = stack.enter_context(stored_factors(store, own.factors.id if own.factors else None))
            tensors = compress_layer(
                own.pairs(),
                own.block,
                own.config,
                chain.model,
                batches,
                stored=stored,
                device=chain.device,
                digests=own.digests(),
            )
            manifest = publish(tensors)
            del tensors
            if not job.last:
                chain.advance(len(job.before), own.block.name, own.recipe.id, batches)
        return manifest

    return made_or_found(own, make)


@stage("distil scales", "distil the scales of {job.label}", GPU)
def distil_block_scales(job: DistilJob) -> ScalesResult:
    """Tune the scales of a delta's matrices against the fine-tuned model's logits, unless the store holds them."""
    from impart_core.calibrate.distil import DistilOptions, distil_scales

    watch, store = start_watch(base=job.base, finetuned=job.finetuned), Store(job.store)
    found = store.examine(job.recipe.id, reread=True)
    manifest = None if job.trust.refreshes("sparsify") else found.manifest
    cached = manifest is not None
    if manifest is None:
        base, finetuned = open_checkpoint(job.base), open_checkpoint(job.finetuned)
        tokens = read_calibration(store, job.calibration)
        scales = distil_scales(
            base,
            finetuned,
            pair_tensors(base, finetuned),
            job.config,
            tokens,
            options=DistilOptions(),
            device=resolve_device(job.device),
        )
        manifest = patiently(
            "publish the scales", lambda: publish_scales(store, job.recipe, scales, job.calibration, watch)
        )
        release_memory()
    return ScalesResult(entry=entry_of(manifest), cached=cached, fault=found.fault, seconds=watch.seconds)


class _Chain:
    """The layers of a model, each of which is given what the one before it gives."""

    def __init__(self, job: LayerJob, store: Store) -> None:
        """Open the model of a job; its layers before this one are published."""
        self._job, self._store = job, store
        self._anew = job.job.trust.refreshes("sparsify")
        self._finetuned, self._base = open_checkpoint(job.job.finetuned), open_checkpoint(job.job.base)
        self.device = resolve_device(job.job.device)
        self.model = CausalModel.of(self._finetuned, self.device)

    def inputs(self, layer: int, stack: ExitStack) -> list[Batch]:
        """Return what a layer is given, from the nearest activations that are there."""
        first, (batches, held) = self._nearest(layer)
        for number, before in enumerate(self._job.before[first:layer], first):
            with held:
                made = self.advance(number, before.name, before.id, batches)
            batches, held = self._opened(made)
        stack.enter_context(held)
        return batches

    def advance(self, layer: int, name: str, block_id: str, batches: Sequence[Batch]) -> Manifest:
        """Run a compressed layer and publish what it gives, as what the next one is given."""
        watch = start_watch(base=self._job.job.base)
        with scratch_folder() as scratch:
            spill = Spill(scratch)
            run_layer(self.model, name, self._weights([block_id]), batches, spill.add)
            return self._publish(spill, self._recipe(layer + 1), f"after {name}", watch)

    def _nearest(self, layer: int) -> tuple[int, tuple[list[Batch], ExitStack]]:
        """Return the last layer up to this one whose activations are whole, and these; the first one's are made."""
        first = 1 if self._anew else 0  # what a layer gives is made again with it, but nothing gives the first its own
        for number in range(layer, first - 1, -1):
            found = self._store.lookup(self._recipe(number).id)
            if found is not None:
                with suppress(CorruptArtifactError):
                    return number, self._opened(found)
        return 0, self._opened(self._embed())

    def _opened(self, manifest: Manifest) -> tuple[list[Batch], ExitStack]:
        """Return activations batch by batch, and what holds their files."""
        with ExitStack() as held:
            return open_activations(self._store, manifest, held), held.pop_all()

    def _embed(self) -> Manifest:
        watch, tokens = start_watch(base=self._job.job.base), read_calibration(self._store, self._job.calibration)
        weights = self._weights([one.id for one in self._job.outside], but=Role.HEAD)
        with scratch_folder() as scratch:
            spill = Spill(scratch)
            for number, part in enumerate(torch.split(tokens, batch_size(tokens.shape[1]))):
                spill.add(number, self.model.embed(weights, part))
            del weights
            return self._publish(spill, self._recipe(0), "embedded", watch)

    def _publish(self, spill: Spill, recipe: Recipe, name: str, watch: Stopwatch) -> Manifest:
        return patiently(
            "publish activations", lambda: spill.publish(self._store, recipe, name, watch, replace=self._anew)
        )

    def _recipe(self, layer: int) -> Recipe:
        return self._job.activations()[layer]

    def _weights(self, blocks: Sequence[str], but: Role | None = None) -> dict[str, torch.Tensor]:
        """Return the tensors of published blocks as they are rebuilt."""
        weights: dict[str, torch.Tensor] = {}
        for block in blocks:
            with self._store.local_file(self._store.manifest(block), CODES_FILE, verified=True) as path:
                file = BlockFile(path)
                names = [name for name, header in file.headers.items() if header.role != but]
                weights.update({name: rebuild_tensor(name, self._base, file.headers[name], file) for name in names})
        return weights
