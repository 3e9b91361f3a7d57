"""Distillation: the gains of a delta are trained once all of its blocks are there.

What the fine-tuned model predicts goes through the store, and so does the training after each of its segments: a run
that was killed goes on there. One model is in memory at a time.
"""

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack, suppress

import torch

from impart_core.artifacts.activations import Spill, open_activations
from impart_core.artifacts.calibration_text import read_calibration
from impart_core.artifacts.scales import ScalesContent, publish_scales, publish_state, read_state
from impart_core.base.errors import CalibrationError, CorruptArtifactError
from impart_core.base.files import scratch_folder
from impart_core.base.numerics import one_thread_per_kernel, release_memory, resolve_device
from impart_core.base.retry import GPU, patiently
from impart_core.blocks.gains import trainables_of
from impart_core.blocks.rebuild import rebuild_tensor
from impart_core.calibrate.distil import Distillation, Schedule, State, Trainable
from impart_core.calibrate.logits import check_tokens, load_causal_model, predictions
from impart_core.checkpoint.reader import read_tensor
from impart_core.codec.format import CODES_FILE, BlockFile
from impart_core.engine.executor import stage
from impart_core.engine.needs import distil_need
from impart_core.engine.references import DistilJob, Made, SensitivityJob
from impart_core.store.manifest import Manifest
from impart_core.store.publish import made_or_found
from impart_core.store.store import Store

logger = logging.getLogger(__name__)


@stage("distil gains", "distil the gains of {job.config.method}", GPU, distil_need)
def distil_gains(job: DistilJob) -> Made:
    """Train a delta's gains against the fine-tuned model's predictions, unless the store holds them."""
    watch, store = job.run.watch(), job.run.open_store()

    def make() -> Manifest:
        with one_thread_per_kernel():
            gains, state, trained = _train(job, store)
        manifest = patiently(
            "publish the gains", lambda: publish_scales(store, job.recipe, gains, state, trained, watch)
        )
        release_memory()
        return manifest

    reuse = job.run.trust.reuse("sparsify", reread=True)
    return Made.of(made_or_found(store, job.recipe.id, make, kind=ScalesContent, reuse=reuse), watch)


def _train(job: DistilJob, store: Store) -> tuple[dict[str, torch.Tensor], State, float]:
    """Return gains by tensor, the state at the end, and the error of numbers as they are stored."""
    tokens, options = read_calibration(store, job.recipe.inputs["calibration"]), job.config.options
    wanted = read_predictions(job, store, tokens)
    device = resolve_device(job.run.device)
    tensors, trainables = _read_blocks(job, store)
    model = load_causal_model(job.finetuned, tensors, device)
    del tensors
    schedule = Schedule(steps=options.distil_steps, rate=options.distil_rate, seed=job.config.seed)
    training = Distillation(model, trainables, tokens, wanted, schedule)
    if not training.count and training.unplaced:
        raise CalibrationError(
            f"The model that transformers loads from {job.finetuned.location} has no matrix of the delta under the "
            "name that the checkpoint gives it. Compress without distil."
        )
    if not training.count:
        logger.warning(
            "Distillation has nothing to train, so that the delta stays as it is: no tensor of it has gains."
        )
        return {}, State.begin(0, 0.0), 0.0
    state = _latest(job, store) or training.begin()
    if not math.isfinite(state.untrained):
        raise CalibrationError(
            f"Of the text some predictions of {job.finetuned.location}, or of the model rebuilt from its delta, are no "
            "numbers. Evaluate both without distil: one of them is broken."
        )
    recipes = job.states()
    while state.step < schedule.steps:
        state = training.advance(state)
        logger.info("Distillation: step %d of %d, divergence %.4g", state.step, schedule.steps, state.least)
        if recipe := recipes.get(state.step):
            publish_state(store, recipe, state, job.run.watch())
    gains, trained = training.result(state)
    if gains:
        logger.info("Distilled %d tensors: divergence %.4g → %.4g.", len(gains), state.untrained, trained)
    else:
        logger.warning(
            "Distillation found nothing that is better on held-out text, so that the delta stays as it is (divergence "
            "%.4g). Lower distil_rate, or give more calibration text.",
            state.untrained,
        )
    return gains, state, trained


def _latest(job: DistilJob, store: Store) -> State | None:
    """Return the last state of the same training that the store holds whole."""
    if job.run.trust.refreshes("sparsify"):
        return None
    for recipe in reversed(job.states().values()):
        if store.lookup(recipe.id, imported=job.run.trust.imported):
            with suppress(CorruptArtifactError):
                return read_state(store, recipe.id)
    return None


def read_predictions(job: DistilJob | SensitivityJob, store: Store, tokens: torch.Tensor) -> torch.Tensor:
    """Return what the fine-tuned model predicts, (sequences, length, 2, k), made unless the store holds it."""
    recipe, anew = job.predictions, job.run.trust.refreshes("sparsify")
    present = None if anew else store.lookup(recipe.id, imported=job.run.trust.imported)
    if present:
        with suppress(CorruptArtifactError):
            return _read_predictions(store, present)
    watch, device = job.run.watch(), resolve_device(job.run.device)
    weights = {name: read_tensor(info) for name, info in job.finetuned.tensors.items()}
    model = load_causal_model(job.finetuned, weights, device)
    del weights
    check_tokens(tokens, model)
    with scratch_folder() as scratch:
        spill = Spill(scratch)
        for number, found in enumerate(predictions(model, tokens.long().to(device))):
            spill.add(number, found.flatten(2))
        manifest = patiently(
            "publish predictions", lambda: spill.publish(store, recipe, "predictions", watch, replace=anew)
        )
    return _read_predictions(store, manifest)


def _read_predictions(store: Store, manifest: Manifest) -> torch.Tensor:
    with ExitStack() as held:
        batches = open_activations(store, manifest, held)
        _, length, width = batches[0].shape
        found, at = torch.empty(sum(batch.shape[0] for batch in batches), length, 2, width // 2), 0
        for batch in batches:
            found[at : at + batch.shape[0]] = batch.read().reshape(-1, *found.shape[1:])
            at += batch.shape[0]
        return found


def _read_blocks(job: DistilJob, store: Store) -> tuple[dict[str, torch.Tensor], dict[str, Callable[[], Trainable]]]:
    """Return all tensors as they are rebuilt before training, and what gives those that have gains."""
    tensors: dict[str, torch.Tensor] = {}
    trainables: dict[str, Callable[[], Trainable]] = {}
    for block in job.recipe.inputs["blocks"]:
        with store.local_file(store.manifest(block), CODES_FILE, verified=True) as path:
            file = BlockFile(path)
            for name, header in file.headers.items():
                tensors[name] = rebuild_tensor(name, job.base.tensors, header, file)
            trainables |= trainables_of(file, job.base, norms=job.config.options.distil_norms)
    return tensors, trainables
