"""What tasks and flows hand each other: small, frozen, JSON."""

from typing import Literal

from impart_core.artifacts.identity import Recipe
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.layout import Block
from impart_core.checkpoint.pairing import Pair, pair_tensors
from impart_core.config import CompressConfig, Frozen

Split = Literal["validation", "test"]


class BlockJob(Frozen):
    """One block to compress: where its tensors lie, what makes it, where it goes.

    Attributes:
        base: the base checkpoint's location; on the Hub, with its commit.
        finetuned: the fine-tuned checkpoint's location, likewise.
        block: the block.
        recipe: what makes it; holds the digests of its tensors.
        factors: what makes its factors, where the request uses some.
        config: method and ratio.
        store: the store's URL.
        device: where the decomposition runs.
    """

    base: str
    finetuned: str
    block: Block
    recipe: Recipe
    factors: Recipe | None = None
    config: CompressConfig
    store: str
    device: str = "auto"

    def pairs(self) -> dict[str, Pair]:
        """Return the pairs of the two checkpoints' tensors, from their headers."""
        return pair_tensors(open_checkpoint(self.base), open_checkpoint(self.finetuned))

    def digests(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the digests of the block's tensors in the base and in the fine-tuned checkpoint."""
        return self.recipe.inputs["base"], self.recipe.inputs["finetuned"]


class FactorsResult(Frozen):
    """A block's published factors: artifact id, whether it was there already, matrices, and fallbacks among them."""

    name: str
    id: str
    cached: bool
    matrices: int
    fallbacks: int
    seconds: float


class BlockResult(Frozen):
    """A published block: its artifact id and its parents', whether it was there already, and its codes' bytes."""

    name: str
    id: str
    parents: tuple[str, ...] = ()
    cached: bool
    bytes: int
    seconds: float


class DeltaJob(Frozen):
    """Published blocks to gather into a delta."""

    finetuned: str
    recipe: Recipe
    blocks: tuple[str, ...]
    store: str
    name: str | None = None


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
    """

    label: str
    model: str
    base: str | None = None
    task: str
    split: Split = "test"
    limit: int | None = None
    store: str
    device: str = "auto"


class EvaluationResult(Frozen):
    """A published evaluation: its artifact id, whether it was there already, and what was measured.

    `metrics` holds value and standard error by task (one, or those inside a group) and metric.
    """

    id: str
    task: str
    cached: bool
    metrics: dict[str, dict[str, tuple[float, float | None]]]
    items: dict[str, int]
    seconds: float
