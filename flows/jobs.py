"""What a compression comes to as jobs: one for each block, in the order that calibration needs where there is some."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from impart_tasks.references import BlockJob, DistilJob, LayerJob, Part

from impart_core.artifacts.activations import activations_recipe
from impart_core.artifacts.block import block_recipe
from impart_core.artifacts.factors import factors_recipe
from impart_core.artifacts.scales import scales_recipe
from impart_core.blocks.coding import calibration_of
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.model import decoder_layers
from impart_core.checkpoint.digest import carried_digests
from impart_core.checkpoint.index import CONFIG, Checkpoint
from impart_core.checkpoint.layout import Block, Role
from impart_core.engine.plan import Work
from impart_core.store.recipe import Recipe

Digests = tuple[dict[str, str], dict[str, str]]


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

    @property
    def activations(self) -> tuple[str, ...]:
        """Ids of all activations that calibration makes."""
        last = next((layer for layer in self.layers.values() if layer.last), None)
        return tuple(recipe.id for recipe in last.activations()) if last else ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all that the jobs make or may reuse."""
        recipes = [found for job in self.jobs for found in (job.recipe, job.factors, job.scales) if found]
        return (*(recipe.id for recipe in recipes), *self.activations)


def plan_jobs(
    config: CompressConfig,
    work: Work,
    finetuned: Checkpoint,
    digests: Digests,
    text: str | None,
    places: Mapping[str, Any],
) -> Planned:
    """Return the jobs of a compression.

    Args:
        config: the request.
        work: its pairs and blocks.
        finetuned: the fine-tuned checkpoint.
        digests: of the tensors of the base and of the fine-tuned checkpoint.
        text: id of the calibration text, where there is some.
        places: what all jobs share: `base`, `finetuned`, `store`, `device` and `trust`.
    """
    needed = calibration_of(config)
    maker = _Maker(config, work, digests, places)
    if needed == "none" or text is None:
        return Planned(tuple(maker.job(block) for block in work.blocks), tuple(range(len(work.blocks))))
    model = _config_digest(finetuned)
    if needed == "logits":
        sides = {"base": digests[0], "finetuned": digests[1]}
        scales = scales_recipe(config, text, sides, model)
        given = {"calibration": text, "scales": scales.id}
        jobs = tuple(
            maker.job(block, given, scales) if maker.is_coded(block) else maker.job(block) for block in work.blocks
        )
        distil = DistilJob(label=config.method, recipe=scales, calibration=text, config=config, **places)
        return Planned(jobs, tuple(range(len(jobs))), distil=distil)
    return _in_layers(maker, work.blocks, decoder_layers(finetuned), text, model)


def _in_layers(maker: "_Maker", blocks: Sequence[Block], layers: Sequence[str], text: str, model: str) -> Planned:
    """Return the jobs of a calibrated method: what lies outside of the layers first, as it embeds the text."""
    by_name = {block.name: block for block in blocks}
    outside = [block for block in blocks if block.name not in layers]
    jobs = [maker.job(block) for block in outside]
    parts = [Part(name=job.block.name, id=job.recipe.id) for job in jobs]
    found: dict[int, LayerJob] = {}
    before: list[Part] = []
    for name in layers:
        after = [before[-1].id] if before else [part.id for part in parts]
        given = activations_recipe(text, after, model)
        job = maker.job(by_name[name], {"calibration": text, "model": model, "activations": given.id})
        found[len(jobs)] = LayerJob(
            job=job,
            calibration=text,
            model=model,
            outside=tuple(parts),
            before=tuple(before),
            last=len(before) == len(layers) - 1,
        )
        jobs.append(job)
        before.append(Part(name=name, id=job.recipe.id))
    numbers = {job.block.name: number for number, job in enumerate(jobs)}
    return Planned(tuple(jobs), tuple(numbers[block.name] for block in blocks), found)


@dataclass(frozen=True)
class _Maker:
    config: CompressConfig
    work: Work
    digests: Digests
    places: Mapping[str, Any]

    def is_coded(self, block: Block) -> bool:
        """Whether a block has matrices that the method itself codes."""
        return any(self.work.pairs[name].role is Role.PROJECTION for name in block.tensors)

    def job(
        self, block: Block, calibration: Mapping[str, object] | None = None, scales: Recipe | None = None
    ) -> BlockJob:
        """Return the job of one block."""
        factors = factors_recipe(self.work.pairs, block, self.config, self.digests)
        recipe = block_recipe(self.work.pairs, block, self.config, self.digests, factors, calibration)
        return BlockJob(block=block, recipe=recipe, factors=factors, scales=scales, config=self.config, **self.places)


def _config_digest(finetuned: Checkpoint) -> str:
    """Return the digest of a model's configuration, by which its code computes."""
    return carried_digests(finetuned)[CONFIG]
