"""What a compression comes to as jobs: one for each block, in the order that calibration needs where there is some."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from impart_core.artifacts.activations import activations_recipe, predictions_recipe
from impart_core.artifacts.block import block_content, block_recipe
from impart_core.artifacts.factors import factors_recipe
from impart_core.artifacts.scales import scales_recipe
from impart_core.artifacts.sensitivity import sensitivity_recipe
from impart_core.blocks.coding import calibration_of
from impart_core.blocks.gains import has_gains
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.digest import carried_digests
from impart_core.checkpoint.index import CONFIG
from impart_core.checkpoint.layout import Block
from impart_core.codec.format import CODES_FILE
from impart_core.engine.memory import distil_bytes, is_measured, is_weighted, measuring_bytes, sensitivity_groups
from impart_core.engine.preflight import Checked
from impart_core.engine.references import BlockGroup, BlockJob, DistilJob, LayerJob, Run, SensitivityJob
from impart_core.engine.requests import CompressRequest

Digests = tuple[dict[str, str], dict[str, str]]
# A task costs the Prefect server some 40 ms: blocks share one until they hold weights whose work takes far longer, or
# each worker would have fewer than a few tasks. Between these bounds, in bytes of fine-tuned weights:
_GROUP_BYTES = (256 << 10, 4 << 20)
_GROUPS_A_WORKER = 4


@dataclass(frozen=True)
class Planned:
    """Jobs in the order in which they are done.

    Attributes:
        jobs: a job for each block.
        order: the jobs' numbers in the model's order.
        layers: of layers that are calibrated, by the job's number; each needs all jobs before it.
        sensitivity: what is measured before any block is coded.
        distil: the gains that are trained once all blocks are there, if any.
        distilled: jobs of the blocks that are made again with them.
    """

    jobs: tuple[BlockJob, ...]
    order: tuple[int, ...]
    layers: Mapping[int, LayerJob] = field(default_factory=dict)
    sensitivity: tuple[SensitivityJob, ...] = ()
    distil: DistilJob | None = None
    distilled: tuple[BlockJob, ...] = ()

    def groups(self, at_once: int) -> tuple[tuple[int, ...], ...]:
        """Return the jobs' numbers, in their order, those of one task together; a layer that is calibrated is alone.

        Args:
            at_once: number of tasks that run at once.
        """
        return _groups(self.jobs, frozenset(self.layers), at_once)

    def distilled_groups(self, at_once: int) -> tuple[BlockGroup, ...]:
        """Return the jobs that follow training, likewise."""
        groups = _groups(self.distilled, frozenset(), at_once)
        return tuple(BlockGroup(tuple(self.distilled[number] for number in group)) for group in groups)

    @property
    def passing(self) -> tuple[str, ...]:
        """Ids of what is of no more use once the delta is there: activations, predictions, sensitivity, trainings."""
        last = next((layer for layer in self.layers.values() if layer.last), None)
        recipes = list(last.activations()) if last else []
        recipes += [one.predictions for one in self.sensitivity]
        recipes += [job.sensitivity for job in self.jobs if job.sensitivity]
        if self.distil:
            recipes += [self.distil.predictions, *self.distil.states().values()]
        return tuple(dict.fromkeys(recipe.id for recipe in recipes))

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all that the jobs make or may reuse."""
        jobs = (*self.jobs, *self.distilled)
        recipes = [recipe for job in jobs for recipe in (job.recipe, job.factors) if recipe]
        recipes += [self.distil.recipe] if self.distil else []
        return (*dict.fromkeys(recipe.id for recipe in recipes), *self.passing)


def _groups(jobs: Sequence[BlockJob], alone_ones: frozenset[int], at_once: int) -> tuple[tuple[int, ...], ...]:
    """Return the numbers of jobs in groups; those of `alone_ones` are in none with others."""
    sizes = [sum(pair.finetuned.nbytes for pair in job.pairs.values()) for job in jobs]
    least, most = _GROUP_BYTES
    room = max(least, min(most, sum(sizes) // (_GROUPS_A_WORKER * at_once)))
    groups: list[list[int]] = []
    held = 0
    for number, size in enumerate(sizes):
        alone = number in alone_ones or (number - 1) in alone_ones
        if not groups or alone or held + size > room:
            groups.append([])
            held = 0
        groups[-1].append(number)
        held += size
    return tuple(map(tuple, groups))


def run_of(request: CompressRequest, checked: Checked, run_id: str = "") -> Run:
    """Return what the stages of a compression share; `run_id` is the pipeline's own id of the run."""
    return Run(
        store=request.store,
        device=request.device,
        trust=request.trust,
        sources=(("base", checked.base.location), ("finetuned", checked.finetuned.location)),
        id=run_id,
        workers=request.workers,
    )


def plan_jobs(checked: Checked, digests: Digests, text: str | None, run: Run) -> Planned:
    """Return the jobs of a compression.

    Args:
        checked: the request's checkpoints and blocks.
        digests: of the tensors of the base and of the fine-tuned checkpoint.
        text: id of the calibration text, where there is some.
        run: what all jobs share.
    """
    config = checked.config
    maker = _Maker(checked, digests, run, config.without_distillation if config.distils else config)
    model = carried_digests(checked.finetuned)[CONFIG] if text else ""  # by which the model's code computes
    if calibration_of(config) == "inputs" and text is not None:
        planned = _in_layers(maker, text, model)
    elif calibration_of(config) == "gradients" and text is not None:
        planned = _by_sensitivity(maker, text, model)
    else:
        blocks = checked.work.blocks
        planned = Planned(tuple(maker.job(block) for block in blocks), tuple(range(len(blocks))))
    return _with_distillation(planned, maker, text, model) if config.distils and text is not None else planned


def _with_distillation(planned: Planned, maker: "_Maker", text: str, model: str) -> Planned:
    """Return the jobs of a delta whose gains are trained once it is there."""
    checked, config, finetuned = maker.checked, maker.checked.config, maker.digests[1]
    before = [planned.jobs[number] for number in planned.order]
    scales = scales_recipe(config, text, [job.recipe.id for job in before], finetuned, model)
    predictions = predictions_recipe(text, finetuned, model)
    again = replace(maker, config=config)
    given = {"calibration": text, "scales": scales.id}
    norms = config.options.distil_norms
    memory = distil_bytes(checked.work.pairs, checked.work.blocks, config)
    return replace(
        planned,
        distil=DistilJob(maker.run, checked.base, checked.finetuned, scales, predictions, config, memory),
        distilled=tuple(
            replace(again.job(job.block, given), before=job.recipe.id, scales=scales.id)
            for job in before
            if any(has_gains(pair.role, norms=norms) for pair in job.pairs.values())
        ),
    )


def _in_layers(maker: "_Maker", text: str, model: str) -> Planned:
    """Return the jobs of a calibrated method: what lies outside of the layers first, as it embeds the text."""
    checked = maker.checked
    by_name = {block.name: block for block in checked.work.blocks}
    jobs = [maker.job(block) for block in checked.work.blocks if block.name not in checked.layers]
    outside = tuple(job.recipe.id for job in jobs)
    layers: dict[int, LayerJob] = {}
    before: list[tuple[str, str]] = []
    for name in checked.layers:
        # What it is given does not depend on what it is made as, so that its own job can follow from that.
        given = activations_recipe(text, [before[-1][1]] if before else list(outside), model)
        job = maker.job(by_name[name], {"calibration": text, "model": model, "activations": given.id})
        last = name == checked.layers[-1]
        layers[len(jobs)] = LayerJob(
            job, checked.base, checked.finetuned, text, model, outside, tuple(before), last=last
        )
        jobs.append(job)
        before.append((name, job.recipe.id))
    numbers = {job.block.name: number for number, job in enumerate(jobs)}
    return Planned(tuple(jobs), tuple(numbers[block.name] for block in checked.work.blocks), layers)


def _by_sensitivity(maker: "_Maker", text: str, model: str) -> Planned:
    """Return the jobs of a method that is told how sensitive predictions are: that is measured first."""
    checked, (base, finetuned), jobs = maker.checked, maker.digests, list[BlockJob]()
    pairs = {name: pair for name, pair in checked.work.pairs.items() if is_measured(pair, maker.config)}
    for block in checked.work.blocks:
        if not is_weighted(block, checked.work.pairs, maker.config):
            jobs.append(maker.job(block))
            continue
        measured = sensitivity_recipe(block.name, text, base, finetuned, model)
        given = {"calibration": text, "model": model, "sensitivity": measured.id}
        jobs.append(replace(maker.job(block, given, decomposed=False), sensitivity=measured))
    by_name = {job.block.name: job for job in jobs if job.sensitivity}
    groups = sensitivity_groups(checked.work.pairs, checked.work.blocks, maker.config)
    predictions = predictions_recipe(text, finetuned, model)
    measuring = tuple(
        SensitivityJob(
            *(maker.run, checked.base, checked.finetuned, text, predictions, pairs),
            jobs=tuple(by_name[block.name] for block in group),
            memory=measuring_bytes(checked.work.pairs, checked.work.blocks, group, maker.config),
        )
        for group in groups
    )
    return Planned(tuple(jobs), tuple(range(len(jobs))), sensitivity=measuring)


@dataclass(frozen=True)
class _Maker:
    checked: Checked
    digests: Digests
    run: Run
    config: CompressConfig

    def job(
        self, block: Block, calibration: Mapping[str, object] | None = None, *, decomposed: bool = True
    ) -> BlockJob:
        """Return the job of one block; `decomposed` says that it uses stored factors, where its methods use any."""
        pairs = {name: self.checked.work.pairs[name] for name in block.tensors}
        factors = factors_recipe(pairs, block, self.config, self.digests) if decomposed else None
        over = self._over(block)
        recipe = block_recipe(pairs, block, self.config, self.digests, factors, {**(calibration or {}), **over})
        return BlockJob(self.run, block, pairs, recipe, self.config, factors, base=self.checked.base if over else None)

    def _over(self, block: Block) -> dict[str, object]:
        """Return what a recipe says of the lossy block that residuals are against, if they are."""
        delta = self.checked.over
        if delta is None:
            return {}
        lossy = next(one for one in delta.blocks if block_content(one).name == block.name)
        return {"over": lossy.id, "over_files": {CODES_FILE: lossy.file(CODES_FILE).sha256}}
