"""What stages are given and give back: small, frozen, and the same on any machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import Field, computed_field

from impart_core.artifacts.activations import activations_recipe
from impart_core.artifacts.scales import state_recipes
from impart_core.base.settings import Frozen
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.text import CalibrationText
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Block
from impart_core.checkpoint.pairing import Pair
from impart_core.engine.requests import Trust
from impart_core.evaluation.items import ItemRange
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import Measure, RunCode, Split
from impart_core.store.catalog import CatalogEntry, entry_of
from impart_core.store.manifest import Measured, Pointer
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import Outcome
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store


@dataclass(frozen=True)
class Run:
    """What all stages of a run share.

    Attributes:
        store: the store's URL.
        device: where tensors are worked on.
        trust: how far what is there already is trusted.
        sources: where the run's checkpoints lie by role, without credentials; recorded with what it makes.
        id: the pipeline's own id of the run; empty outside of one.
        workers: threads that may share the work of one stage; None: one for each core.
    """

    store: str
    device: str = "auto"
    trust: Trust = field(default_factory=Trust)
    sources: tuple[tuple[str, str], ...] = ()
    id: str = ""
    workers: int | None = None

    def open_store(self) -> Store:
        """Return the store."""
        return Store(self.store)

    def watch(self, **more: str) -> Stopwatch:
        """Start measuring a piece of its work; `more` are sources by role that only this piece has."""
        return Stopwatch({**dict(self.sources), **more}, run=self.id)


@dataclass(frozen=True)
class BlockJob:
    """One block to decompose or to encode.

    Attributes:
        run: the run.
        block: the block.
        pairs: the pairs of its tensors by name: where each lies in both checkpoints.
        recipe: what makes it; holds the digests of its tensors.
        config: the request.
        factors: what makes its factors, where the request uses some.
        before: id of the block without the gains that were trained, where there are some.
        scales: id of these gains.
        base: the base checkpoint, where residuals to a lossy block, the recipe's input `over`, are to be stored.
        sensitivity: what makes the sensitivity of its matrices, where the request's method is told of it.
    """

    run: Run
    block: Block
    pairs: Mapping[str, Pair]
    recipe: Recipe
    config: CompressConfig
    factors: Recipe | None = None
    before: str | None = None
    scales: str | None = None
    base: Checkpoint | None = None
    sensitivity: Recipe | None = None

    def digests(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the digests of the block's tensors in the base and in the fine-tuned checkpoint."""
        return self.recipe.inputs["base"], self.recipe.inputs["finetuned"]


@dataclass(frozen=True)
class BlockGroup:
    """Blocks that one task works on, one after the other: one block, or several that are small."""

    jobs: tuple[BlockJob, ...]

    @property
    def name(self) -> str:
        """The block's name, or those of the first and the last."""
        first, last = self.jobs[0].block.name, self.jobs[-1].block.name
        return first if len(self.jobs) == 1 else f"{first} to {last}"


@dataclass(frozen=True)
class TextJob:
    """Calibration text to turn into tokens with the tokenizer of the fine-tuned checkpoint."""

    run: Run
    text: CalibrationText
    finetuned: Checkpoint


@dataclass(frozen=True)
class LayerJob:
    """A decoder layer to compress on what it is given.

    Attributes:
        job: the layer as a block.
        base: the base checkpoint, for layers that have to be run again.
        finetuned: the fine-tuned checkpoint, by whose configuration the model is run.
        calibration: id of the calibration text.
        model: digest of the model's configuration.
        outside: ids of the blocks that are no layers, among them what embeds tokens.
        before: names and ids of the layers before this one, in their order.
        last: whether no layer comes after it.
    """

    job: BlockJob
    base: Checkpoint
    finetuned: Checkpoint
    calibration: str
    model: str
    outside: tuple[str, ...]
    before: tuple[tuple[str, str], ...]
    last: bool

    def activations(self) -> tuple[Recipe, ...]:
        """Return what makes the activations that each layer up to this one is given, and those that this one gives."""
        after = (list(self.outside), *([block] for _, block in self.before), [self.job.recipe.id])
        return tuple(activations_recipe(self.calibration, ids, self.model) for ids in after)

    @property
    def given(self) -> Recipe:
        """What makes the activations that this layer is given."""
        return self.activations()[len(self.before)]


@dataclass(frozen=True)
class SensitivityJob:
    """Blocks whose matrices' sensitivity is measured in one run through the model.

    Attributes:
        run: the run.
        base: the base checkpoint.
        finetuned: the fine-tuned checkpoint.
        calibration: id of the calibration text.
        predictions: what makes the fine-tuned model's predictions for the text.
        pairs: the pairs of all matrices of the model by name.
        jobs: the blocks.
        memory: bytes that it takes, at most.
    """

    run: Run
    base: Checkpoint
    finetuned: Checkpoint
    calibration: str
    predictions: Recipe
    pairs: Mapping[str, Pair]
    jobs: tuple[BlockJob, ...]
    memory: int

    @property
    def name(self) -> str:
        """The blocks' names."""
        return BlockGroup(self.jobs).name


@dataclass(frozen=True)
class DistilJob:
    """Gains to train.

    Attributes:
        run: the run.
        base: the base checkpoint.
        finetuned: the fine-tuned checkpoint.
        recipe: what makes the gains; holds the ids of the delta's blocks before, and of the text.
        predictions: what makes the fine-tuned model's predictions for the text.
        config: the request.
        memory: bytes that it takes, at most.
    """

    run: Run
    base: Checkpoint
    finetuned: Checkpoint
    recipe: Recipe
    predictions: Recipe
    config: CompressConfig
    memory: int

    def states(self) -> dict[int, Recipe]:
        """Return what makes the states of the training by steps done, rising."""
        return state_recipes(self.recipe, self.config.options.distil_steps)


@dataclass(frozen=True)
class DeltaJob:
    """A delta to look for, or to gather from published blocks.

    Attributes:
        run: the run.
        finetuned: the fine-tuned checkpoint, whose configuration and tokenizer go with the delta.
        recipe: what makes the delta.
        name: the name that it gets, if any.
        made: what its stages made, to be entered in the catalogue: blocks in the model's order, and factors.
    """

    run: Run
    finetuned: Checkpoint
    recipe: Recipe
    name: str | None = None
    made: tuple[CatalogEntry, ...] = ()


@dataclass(frozen=True)
class EvaluationJob:
    """A model to evaluate: a checkpoint folder, or a delta in a store together with its base.

    Attributes:
        run: the run.
        label: what people call the model; no part of any id.
        model: the checkpoint's place, or the delta's artifact id.
        checkpoint: the model where it is a checkpoint, an adapter's merged into its base; None for a delta.
        base: the base of a delta, else None.
        tasks: lm-eval task names.
        split: which split of each task.
        limit: number of items of each; None for all.
        code: whether tasks may run code that the model writes; no part of any id.
        measuring: how lm-eval measures it.
        source: the store that holds the delta; None: the one that the metrics go to.
    """

    run: Run
    label: str
    model: str
    checkpoint: Checkpoint | None
    base: Checkpoint | None
    tasks: tuple[str, ...]
    split: Split = "test"
    limit: int | None = None
    code: RunCode = "never"
    measuring: MeasureOptions = field(default_factory=MeasureOptions)
    source: str | None = None


@dataclass(frozen=True)
class TrialJob:
    """A model to score item by item: a checkpoint, whose tensors may be computed when they are read, or a delta.

    Attributes:
        run: the run; its store holds the trials.
        label: what people call the model; no part of any id.
        tasks: lm-eval's names of tasks, no groups: see `split_items`.
        items: the range of each task, by place in its order of items.
        checkpoint: the model, where it is a checkpoint.
        delta: the id of the delta's artifact, where it is one.
        base: the base of a delta, else None.
        inputs: what stands for a model in recipes that is merged, by which its trials are found before any tensor is
            computed; None: its tensors are digested, or it is a delta.
        parents: ids of artifacts that the model was made from, for lineage; a delta is its own.
        split: which split of each task.
        measure: the tasks' own metrics, or `answer_loss`.
        measuring: how lm-eval measures it.
        code: whether tasks may run code that the model writes; no part of any id.
        source: the store that holds the delta; None: the one that the trials go to.
    """

    run: Run
    label: str
    tasks: tuple[str, ...]
    items: ItemRange
    checkpoint: Checkpoint | None = None
    delta: str | None = None
    base: Checkpoint | None = None
    inputs: Mapping[str, object] | None = None
    parents: tuple[str, ...] = ()
    split: Split = "validation"
    measure: Measure = "metrics"
    measuring: MeasureOptions = field(default_factory=MeasureOptions)
    code: RunCode = "never"
    source: str | None = None


class TaskScores(Frozen):
    """A model's scores on a range of one task's items.

    Attributes:
        task: lm-eval's name of the task.
        items: the range.
        trials: ids of the trials that hold the scores item by item, in order: see `read_scores`.
        metrics: mean over items and its standard error by metric.
        measured: number of items that were measured for this; the others' scores were there.
    """

    task: str
    items: ItemRange
    trials: tuple[str, ...]
    metrics: dict[str, Measured]
    measured: int


class TrialResult(Frozen):
    """A model's scores, or why it has none.

    Attributes:
        scores: by task in the job's order; of a model that failed, of the tasks before it did.
        failure: why the model has no further scores, as a sentence; None where it has all.
        may_pass: whether the reason may be gone when it is tried again.
        failed_trial: id of the trial that holds the failure; None where the model has no id either.
        seconds: how long it took.
    """

    scores: tuple[TaskScores, ...]
    failure: str | None = None
    may_pass: bool = False
    failed_trial: str | None = None
    seconds: float

    def of(self, task: str) -> TaskScores:
        """Return the scores on a task that has some."""
        return next(one for one in self.scores if one.task == task)


class Made(Frozen):
    """An artifact that a stage made or found.

    Attributes:
        entry: its entry for the catalogue; not shown in JSON, where its id stands for it.
        cached: whether it was there already, whole.
        fault: what was wrong with the one that was there, if anything.
        changed: whether it was made again as asked and came out other than the one that was there.
        seconds: how long it took.
    """

    entry: CatalogEntry = Field(exclude=True)
    cached: bool
    fault: str | None = None
    changed: bool = False
    seconds: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def id(self) -> str:
        """The artifact id."""
        return self.entry.id

    @classmethod
    def of(cls, outcome: Outcome, watch: Stopwatch, **own: Any) -> Self:
        """Return what a stage has to say of what a store gave or was given, and the fields of a subclass."""
        return cls(
            entry=entry_of(outcome.manifest),
            cached=outcome.cached,
            fault=outcome.fault,
            changed=outcome.changed,
            seconds=watch.seconds,
            **own,
        )


class FactorsResult(Made):
    """A block's published factors, how many matrices these are, and fallbacks among them."""

    matrices: int
    fallbacks: int


class DeltaResult(Frozen):
    """A published delta: both ratios, all its bytes, its blocks, and what was wrong with a former one.

    `entry` is None where there is no whole delta. `saved_bytes` is what the lossless stage made its codes smaller by.
    """

    entry: CatalogEntry | None = None
    cr_projection: float | None = None
    cr_model: float = 0.0
    bytes: int = 0
    saved_bytes: int = 0
    blocks: tuple[Pointer, ...] = ()
    faults: tuple[str, ...] = ()
    changed: bool = False


class EvaluationResult(Made):
    """A published evaluation of one task, and what was measured.

    `metrics` holds value and standard error by task (one, or those inside a group) and metric.
    """

    task: str
    metrics: dict[str, dict[str, Measured]]
    items: dict[str, int]
