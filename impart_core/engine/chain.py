"""Calibration in forward order: each layer is compressed on what the compressed layers before it give.

What a layer is given goes through the store, so that a run that was killed goes on at the layer that it was in.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress

import torch

from impart_core.artifacts.activations import Spill, open_activations
from impart_core.artifacts.calibration_text import read_calibration
from impart_core.artifacts.factors import stored_factors
from impart_core.base.errors import CorruptArtifactError
from impart_core.base.files import scratch_folder
from impart_core.base.numerics import default_workers, release_memory, resolve_device, return_large_memory_at_once
from impart_core.base.parallel import at_once
from impart_core.base.retry import GPU, patiently
from impart_core.blocks.calibrated import compress_layer, run_layer
from impart_core.blocks.encode import Encoder
from impart_core.blocks.rebuild import rebuild_tensor
from impart_core.calibrate.layer import Batch, batch_size
from impart_core.calibrate.model import CausalModel
from impart_core.checkpoint.layout import Role
from impart_core.codec.format import CODES_FILE, BlockFile
from impart_core.engine.executor import stage
from impart_core.engine.needs import layer_need
from impart_core.engine.references import LayerJob, Made
from impart_core.engine.stages import block_made_or_found, publish_tensors
from impart_core.store.manifest import Manifest
from impart_core.store.provenance import Stopwatch
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store


@stage("quantise layer", "quantise {job.job.block.name}", GPU, layer_need)
def quantize_layer(job: LayerJob) -> tuple[Made, ...]:
    """Compress one decoder layer on what the layers before it give, unless the store holds it whole already.

    Layers come one after the other, so that the run's workers, by default one for each core, share the work on each.

    What it gives in turn is published for the next one. Where what it is given is not there, because a run ended
    between the two or it was cleaned up, the layers before it are run again, none is compressed again.
    """
    return_large_memory_at_once()
    own = job.job
    watch, store = own.run.watch(), own.run.open_store()

    def make() -> Manifest:
        chain = _Chain(job, store)
        with ExitStack() as stack:
            if chain.device.type == "cpu":
                stack.enter_context(at_once(own.run.workers or default_workers()))
            batches = chain.inputs(len(job.before), stack)
            factors = own.factors.id if own.factors else None
            stored = stack.enter_context(stored_factors(store, factors, imported=own.run.trust.imported))
            encoder = Encoder(own.config, stored, device=chain.device, digests=own.digests())
            tensors = compress_layer(encoder, own.pairs, own.block, chain.model, batches)
            manifest = publish_tensors(own, store, tensors, watch, kept_factors=stored is not None, read_again=True)
            if not job.last:
                chain.advance(len(job.before), own.block.name, own.recipe.id, batches)
        release_memory()
        return manifest

    return (block_made_or_found(own, store, make, watch),)


class _Chain:
    """The layers of a model, each of which is given what the one before it gives."""

    def __init__(self, job: LayerJob, store: Store) -> None:
        """Make the model of a job; its layers before this one are published."""
        self._job, self._store, self._run = job, store, job.job.run
        self._recipes = job.activations()
        self._anew = self._run.trust.refreshes("sparsify")
        self.device = resolve_device(self._run.device)
        self.model = CausalModel.of(job.finetuned, self.device)

    def inputs(self, layer: int, stack: ExitStack) -> list[Batch]:
        """Return what a layer is given, from the nearest activations that are there."""
        first, (batches, held) = self._nearest(layer)
        for number, (name, block) in enumerate(self._job.before[first:layer], first):
            with held:
                made = self.advance(number, name, block, batches)
            batches, held = self._opened(made)
        stack.enter_context(held)
        return batches

    def advance(self, layer: int, name: str, block_id: str, batches: Sequence[Batch]) -> Manifest:
        """Run a compressed layer and publish what it gives, as what the next one is given."""
        watch = self._run.watch()
        with scratch_folder() as scratch:
            spill = Spill(scratch)
            run_layer(self.model, name, self._weights([block_id]), batches, spill.add)
            return self._publish(spill, self._recipes[layer + 1], f"after {name}", watch)

    def _nearest(self, layer: int) -> tuple[int, tuple[list[Batch], ExitStack]]:
        """Return the last layer up to this one whose activations are whole, and these; the first one's are made."""
        first = 1 if self._anew else 0  # what a layer gives is made again with it, but nothing gives the first its own
        for number in range(layer, first - 1, -1):
            present = self._store.lookup(self._recipes[number].id, imported=self._run.trust.imported)
            if present is not None:
                with suppress(CorruptArtifactError):
                    return number, self._opened(present)
        return 0, self._opened(self._embed())

    def _opened(self, manifest: Manifest) -> tuple[list[Batch], ExitStack]:
        """Return activations batch by batch, and what holds their files."""
        with ExitStack() as held:
            return open_activations(self._store, manifest, held), held.pop_all()

    def _embed(self) -> Manifest:
        watch, tokens = self._run.watch(), read_calibration(self._store, self._job.calibration)
        weights = self._weights(self._job.outside, but=Role.HEAD)
        with scratch_folder() as scratch:
            spill = Spill(scratch)
            for number, part in enumerate(torch.split(tokens, batch_size(tokens.shape[1]))):
                spill.add(number, self.model.embed(weights, part))
            del weights
            return self._publish(spill, self._recipes[0], "embedded", watch)

    def _publish(self, spill: Spill, recipe: Recipe, name: str, watch: Stopwatch) -> Manifest:
        return patiently(
            "publish activations", lambda: spill.publish(self._store, recipe, name, watch, replace=self._anew)
        )

    def _weights(self, blocks: Sequence[str], but: Role | None = None) -> dict[str, torch.Tensor]:
        """Return the tensors of published blocks as they are rebuilt."""
        weights: dict[str, torch.Tensor] = {}
        for block in blocks:
            with self._store.local_file(self._store.manifest(block), CODES_FILE, verified=True) as path:
                file = BlockFile(path)
                headers = {name: header for name, header in file.headers.items() if header.role != but}
                base = self._job.base.tensors
                weights |= {name: rebuild_tensor(name, base, headers[name], file) for name in headers}
        return weights
