"""What stages take beyond a core, told from their jobs: a device, and memory as `plan` counts it."""

from typing import Protocol

from impart_core.base.numerics import default_workers
from impart_core.checkpoint.index import Checkpoint
from impart_core.engine.executor import Need
from impart_core.engine.memory import weighting_bytes
from impart_core.engine.plan import block_peak_bytes, calibration_bytes
from impart_core.engine.references import (
    BlockGroup,
    BlockJob,
    DistilJob,
    EvaluationJob,
    LayerJob,
    SensitivityJob,
    TrialJob,
)
from impart_core.engine.template import Template


class _OfTemplate(Protocol):
    @property
    def template(self) -> Template: ...


class _OfTrial(Protocol):
    @property
    def trial(self) -> TrialJob: ...


def group_need(group: BlockGroup, read_again: bool = False) -> Need:  # noqa: ARG001 - a stage's parameters
    """Return what blocks take that are decomposed or encoded one after the other."""
    return Need(device=True, memory=max(_block_memory(job) for job in group.jobs))


def layer_need(job: LayerJob) -> Need:
    """Return what a layer takes that is compressed on what it is given."""
    own = job.job
    extra = calibration_bytes(own.block, own.pairs, own.config, own.run.workers or default_workers())
    return Need(device=True, memory=_block_memory(own) + extra)


def sensitivity_need(job: SensitivityJob) -> Need:
    """Return what measuring sensitivity takes."""
    return Need(device=True, memory=job.memory)


def distil_need(job: DistilJob) -> Need:
    """Return what training gains takes."""
    return Need(device=True, memory=job.memory)


def evaluation_need(job: EvaluationJob) -> Need:
    """Return what an evaluation takes: its model, at the least."""
    return _model_need(job.checkpoint or job.base)


def candidate_need(job: _OfTemplate) -> Need:
    """Return what a candidate of a search takes: its model, at the least."""
    return _model_need(job.template.base)


def reference_need(job: _OfTrial) -> Need:
    """Return what scoring a model takes: the model, at the least."""
    return _model_need(job.trial.checkpoint or job.trial.base)


def _block_memory(job: BlockJob) -> int:
    weighting = weighting_bytes(job.block, job.pairs, job.config) if job.sensitivity else 0
    return block_peak_bytes(list(job.pairs.values()), job.config, residual=job.base is not None) + weighting


def _model_need(model: Checkpoint | None) -> Need:
    return Need(device=True, memory=model.nbytes if model else 0)
