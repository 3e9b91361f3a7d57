"""What tasks and flows hand each other: small, frozen, JSON."""

from typing import Literal

from impart_core.artifacts.activations import activations_recipe
from impart_core.base.settings import Frozen
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.text import CalibrationText
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.layout import Block
from impart_core.checkpoint.pairing import Pair, pair_tensors
from impart_core.store.catalog import CatalogEntry
from impart_core.store.manifest import Pointer
from impart_core.store.recipe import Recipe

Split = Literal["validation", "test"]
STAGES = ("digest", "decompose", "sparsify", "gather")
Stage = Literal["digest", "decompose", "sparsify", "gather"]


class Trust(Frozen):
    """How far what is there already is trusted; no part of any artifact's id.

    Attributes:
        reread: whether an artifact's files are read, to hold them against the recorded digests, before it is reused.
        refresh_from: the stage from which on nothing is reused; None: all that is whole is.
    """

    reread: bool = False
    refresh_from: Stage | None = None

    def refreshes(self, stage: Stage) -> bool:
        """Return whether a stage is to be done again whatever is there."""
        return self.refresh_from is not None and STAGES.index(self.refresh_from) <= STAGES.index(stage)


class BlockJob(Frozen):
    """One block to compress: where its tensors lie, what makes it, where it goes.

    Attributes:
        base: the base checkpoint's location; on the Hub, with its commit.
        finetuned: the fine-tuned checkpoint's location, likewise.
        block: the block.
        recipe: what makes it; holds the digests of its tensors.
        factors: what makes its factors, where the request uses some.
        scales: what makes the scales that it takes, where these are distilled.
        config: method and ratio.
        store: the store's URL.
        device: where the decomposition runs.
        trust: how far what is there already is trusted.
    """

    base: str
    finetuned: str
    block: Block
    recipe: Recipe
    factors: Recipe | None = None
    scales: Recipe | None = None
    config: CompressConfig
    store: str
    device: str = "auto"
    trust: Trust = Trust()

    def pairs(self) -> dict[str, Pair]:
        """Return the pairs of the two checkpoints' tensors, from their headers."""
        return pair_tensors(open_checkpoint(self.base), open_checkpoint(self.finetuned))

    def digests(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the digests of the block's tensors in the base and in the fine-tuned checkpoint."""
        return self.recipe.inputs["base"], self.recipe.inputs["finetuned"]


class TextJob(Frozen):
    """Calibration text to turn into tokens: the text, the checkpoint whose tokenizer does it, the store."""

    text: CalibrationText
    finetuned: str
    store: str


class Part(Frozen):
    """A block of a delta: its name and its artifact id."""

    name: str
    id: str


class LayerJob(Frozen):
    """A decoder layer to compress on what it is given.

    Attributes:
        job: the layer as a block.
        calibration: id of the calibration text.
        model: digest of the model's configuration.
        outside: the blocks that are no layers, among them what embeds tokens.
        before: the layers before this one, in their order.
        last: whether no layer comes after it.
    """

    job: BlockJob
    calibration: str
    model: str
    outside: tuple[Part, ...]
    before: tuple[Part, ...]
    last: bool

    @property
    def store(self) -> str:
        """The store's URL."""
        return self.job.store

    def activations(self) -> tuple[Recipe, ...]:
        """Return what makes the activations that each layer up to this one is given, and those that this one gives."""
        embedded = [part.id for part in self.outside]
        layers = [[part.id] for part in self.before]
        after = (embedded, *layers, [self.job.recipe.id])
        return tuple(activations_recipe(self.calibration, ids, self.model) for ids in after)

    @property
    def given(self) -> Recipe:
        """What makes the activations that this layer is given."""
        return self.activations()[len(self.before)]


class DistilJob(Frozen):
    """Scales to distil: of which delta, with which text, what makes them."""

    label: str
    base: str
    finetuned: str
    recipe: Recipe
    calibration: str
    config: CompressConfig
    store: str
    device: str = "auto"
    trust: Trust = Trust()


class Made(Frozen):
    """An artifact that a stage made or found.

    Attributes:
        entry: its entry for the catalogue.
        cached: whether it was there already, whole.
        fault: what was wrong with the one that was there, if anything.
        changed: whether it was made again as asked and came out other than the one that was there.
        seconds: how long it took.
    """

    entry: CatalogEntry
    cached: bool
    fault: str | None = None
    changed: bool = False
    seconds: float

    @property
    def id(self) -> str:
        """The artifact id."""
        return self.entry.id


class MadeText(Made):
    """Published calibration text: how many sequences of how many tokens."""

    sequences: int
    length: int


class ScalesResult(Made):
    """Published scales."""


class FactorsResult(Made):
    """A block's published factors, how many matrices these are, and fallbacks among them."""

    name: str
    matrices: int
    fallbacks: int


class BlockResult(Made):
    """A published block, and the bytes of its codes' file."""

    name: str
    bytes: int


class DeltaJob(Frozen):
    """A delta to look for, or to gather from published blocks.

    Attributes:
        base: the base checkpoint's location.
        finetuned: the fine-tuned checkpoint's location.
        recipe: what makes the delta.
        store: the store's URL.
        name: the name that it gets, if any.
        trust: how far what is there already is trusted.
        made: what its stages made, to be entered in the catalogue: blocks in the model's order, and factors.
    """

    base: str
    finetuned: str
    recipe: Recipe
    store: str
    name: str | None = None
    trust: Trust = Trust()
    made: tuple[CatalogEntry, ...] = ()


class DeltaResult(Frozen):
    """A published delta: both ratios, all its bytes, its blocks, and what was wrong with a former one.

    `id` is None where there is no whole delta. `saved_bytes` is what the lossless stage made its codes smaller by.
    """

    id: str | None = None
    cr_projection: float | None = None
    cr_model: float = 0.0
    bytes: int = 0
    saved_bytes: int = 0
    blocks: tuple[Pointer, ...] = ()
    faults: tuple[str, ...] = ()
    changed: bool = False


class EvaluationJob(Frozen):
    """A model to evaluate: a checkpoint folder, or a delta in a store together with its base.

    Attributes:
        label: what people call the model; no part of any id.
        model: the checkpoint's folder, or the delta's artifact id.
        base: location of the base where `model` is a delta, else None.
        task: lm-eval task name.
        split: which split of the task.
        limit: number of items; None for all.
        store: the store's URL.
        device: where the model runs.
        trust: how far what is there already is trusted.
    """

    label: str
    model: str
    base: str | None = None
    task: str
    split: Split = "test"
    limit: int | None = None
    store: str
    device: str = "auto"
    trust: Trust = Trust()


class EvaluationResult(Frozen):
    """A published evaluation: its artifact id, whether it was there already, and what was measured.

    `metrics` holds value and standard error by task (one, or those inside a group) and metric.
    """

    id: str
    task: str
    cached: bool
    fault: str | None = None
    changed: bool = False
    metrics: dict[str, dict[str, tuple[float, float | None]]]
    items: dict[str, int]
    seconds: float
