"""Measuring how sensitive a model's predictions are to its matrices, before blocks are coded by that."""

from collections.abc import Mapping

import torch

from impart_core.artifacts.calibration_text import read_calibration
from impart_core.artifacts.sensitivity import SensitivityContent, publish_sensitivity
from impart_core.base.numerics import one_thread_per_kernel, release_memory, resolve_device
from impart_core.base.retry import GPU, patiently
from impart_core.calibrate.logits import load_causal_model
from impart_core.calibrate.sensitivity import POINTS, Sums
from impart_core.checkpoint.header import DTYPES
from impart_core.checkpoint.pairing import Pair
from impart_core.checkpoint.reader import read_tensor
from impart_core.delta.extract import add_delta, extract_delta
from impart_core.engine.distil import read_predictions
from impart_core.engine.executor import stage
from impart_core.engine.needs import sensitivity_need
from impart_core.engine.references import BlockJob, Made, SensitivityJob
from impart_core.quantization.kfac import Sensitivity
from impart_core.store.manifest import Manifest
from impart_core.store.publish import made_or_found
from impart_core.store.store import Store


@stage("measure sensitivity", "sensitivity of {job.name}", GPU, sensitivity_need)
def measure_sensitivity(job: SensitivityJob) -> tuple[Made, ...]:
    """Measure the sensitivity of blocks and publish it, unless the store holds it, or already what it is for."""
    store, trust = job.run.open_store(), job.run.trust
    anew = trust.refreshes("sparsify")
    needed = [one for one in job.jobs if anew or store.lookup(one.recipe.id, imported=trust.imported) is None]
    measured: dict[str, Sensitivity] = {}

    def made(one: BlockJob) -> Made:
        watch, recipe = job.run.watch(), one.sensitivity
        assert recipe is not None

        def make() -> Manifest:
            if not measured:
                with one_thread_per_kernel():
                    measured.update(_measure(job, store))
            own = {name: measured[name] for name in one.pairs if name in measured}
            return patiently("publish the sensitivity", lambda: publish_sensitivity(store, recipe, own, watch))

        reuse = trust.reuse("sparsify", reread=True)
        return Made.of(made_or_found(store, recipe.id, make, kind=SensitivityContent, reuse=reuse), watch)

    found = tuple(map(made, needed))
    release_memory()
    return found


def _measure(job: SensitivityJob, store: Store) -> dict[str, Sensitivity]:
    """Return the sensitivity of each matrix of the blocks by name."""
    tokens, device = read_calibration(store, job.calibration), resolve_device(job.run.device)
    wanted = read_predictions(job, store, tokens)
    names = {name for one in job.jobs for name in one.pairs if name in job.pairs}
    sums = Sums()
    for point in POINTS:
        tensors = _tensors_at(job, point)
        model = load_causal_model(job.finetuned, tensors, device)
        weights = {name: tensors[name] for name in sorted(names)}
        del tensors
        sums.add(model, weights, tokens, wanted)
        del model
        release_memory()
    return sums.sensitivities()


def _tensors_at(job: SensitivityJob, point: float) -> Mapping[str, torch.Tensor]:
    """Return the fine-tune's tensors, its matrices with a share of their delta only."""
    tensors = {}
    for name, info in job.finetuned.tensors.items():
        tensors[name] = read_tensor(info)
        if name in job.pairs:
            tensors[name] = _between(job.pairs[name], tensors[name], point)
    return tensors


def _between(pair: Pair, finetuned: torch.Tensor, point: float) -> torch.Tensor:
    assert pair.base is not None
    base = read_tensor(pair.base)
    return add_delta(base, point * extract_delta(base, finetuned, pair.name), DTYPES[pair.finetuned.dtype])
