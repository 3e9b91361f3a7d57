"""What a compression comes to as jobs: one for each block, in the order that calibration needs where there is some."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from impart_core.artifacts.activations import activations_recipe
from impart_core.artifacts.block import block_recipe
from impart_core.artifacts.factors import factors_recipe
from impart_core.artifacts.scales import scales_recipe
from impart_core.blocks.coding import calibration_of
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.digest import carried_digests
from impart_core.checkpoint.index import CONFIG
from impart_core.checkpoint.layout import Block, Role
from impart_core.engine.preflight import Checked
from impart_core.engine.references import BlockJob, DistilJob, LayerJob, Run
from impart_core.store.recipe import Recipe

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
        distil: what is distilled first, if anything.
    """

    jobs: tuple[BlockJob, ...]
    order: tuple[int, ...]
    layers: Mapping[int, LayerJob] = field(default_factory=dict)
    distil: DistilJob | None = None

    def groups(self, at_once: int) -> tuple[tuple[int, ...], ...]:
        """Return the jobs' numbers, in their order, those of one task together; a layer that is calibrated is alone.

        Args:
            at_once: number of tasks that run at once.
        """
        sizes = [sum(pair.finetuned.nbytes for pair in job.pairs.values()) for job in self.jobs]
        least, most = _GROUP_BYTES
        room = max(least, min(most, sum(sizes) // (_GROUPS_A_WORKER * at_once)))
        groups: list[list[int]] = []
        held = 0
        for number, size in enumerate(sizes):
            alone = number in self.layers or (number - 1) in self.layers
            if not groups or alone or held + size > room:
                groups.append([])
                held = 0
            groups[-1].append(number)
            held += size
        return tuple(map(tuple, groups))

    @property
    def activations(self) -> tuple[str, ...]:
        """Ids of all activations that calibration makes."""
        last = next((layer for layer in self.layers.values() if layer.last), None)
        return tuple(recipe.id for recipe in last.activations()) if last else ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all that the jobs make or may reuse."""
        recipes = [recipe for job in self.jobs for recipe in (job.recipe, job.factors, job.scales) if recipe]
        return (*(recipe.id for recipe in recipes), *self.activations)


def plan_jobs(checked: Checked, digests: Digests, text: str | None, run: Run) -> Planned:
    """Return the jobs of a compression.

    Args:
        checked: the request's checkpoints and blocks.
        digests: of the tensors of the base and of the fine-tuned checkpoint.
        text: id of the calibration text, where there is some.
        run: what all jobs share.
    """
    maker, blocks, config = _Maker(checked, digests, run), checked.work.blocks, checked.config
    needed = calibration_of(config)
    if needed == "none" or text is None:
        return Planned(tuple(maker.job(block) for block in blocks), tuple(range(len(blocks))))
    model = carried_digests(checked.finetuned)[CONFIG]  # by which the model's code computes
    if needed == "inputs":
        return _in_layers(maker, text, model)
    scales = scales_recipe(config, text, {"base": digests[0], "finetuned": digests[1]}, model)
    given = {"calibration": text, "scales": scales.id}
    return Planned(
        jobs=tuple(maker.job(block, given, scales) if maker.is_coded(block) else maker.job(block) for block in blocks),
        order=tuple(range(len(blocks))),
        distil=DistilJob(run, checked.base, checked.finetuned, checked.work.pairs, scales, text, config),
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


@dataclass(frozen=True)
class _Maker:
    checked: Checked
    digests: Digests
    run: Run

    def is_coded(self, block: Block) -> bool:
        """Whether a block has matrices that the method itself codes."""
        return any(self.checked.work.pairs[name].role is Role.PROJECTION for name in block.tensors)

    def job(
        self, block: Block, calibration: Mapping[str, object] | None = None, scales: Recipe | None = None
    ) -> BlockJob:
        """Return the job of one block."""
        config: CompressConfig = self.checked.config
        pairs = {name: self.checked.work.pairs[name] for name in block.tensors}
        factors = factors_recipe(pairs, block, config, self.digests)
        recipe = block_recipe(pairs, block, config, self.digests, factors, calibration)
        return BlockJob(self.run, block, pairs, recipe, config, factors, scales)
