"""What the engine is asked to do; `config`, `calibration`, tasks and split alone decide on ids."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from impart_core.base.errors import ConfigError
from impart_core.base.settings import Frozen
from impart_core.base.spread import Spread
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.text import CalibrationText
from impart_core.checkpoint.location import is_remote
from impart_core.checkpoint.writer import DEFAULT_SHARD_BYTES
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import RunCode, Split
from impart_core.merging.file import MergeFile
from impart_core.store.publish import Reuse
from impart_core.store.store import default_store_url

STAGES = ("digest", "decompose", "sparsify", "gather")
RefreshStage = Literal["digest", "decompose", "sparsify", "gather"]


class Trust(Frozen):
    """How far what is there already is trusted; no part of any artifact's id.

    Attributes:
        reread: whether an artifact's files are read, to hold them against the recorded digests, before it is reused.
        imported: whether what was made elsewhere and imported is reused as if it had been made here.
        refresh_from: the stage from which on nothing is reused; None: all that is whole is.
    """

    reread: bool = False
    imported: bool = False
    refresh_from: RefreshStage | None = None

    def refreshes(self, stage: RefreshStage) -> bool:
        """Return whether a stage is to be done again whatever is there."""
        return self.refresh_from is not None and STAGES.index(self.refresh_from) <= STAGES.index(stage)

    def reuse(self, stage: RefreshStage, *, reread: bool = False) -> Reuse:
        """Return how far what a stage makes is reused; `reread`: its files are read in any case."""
        return Reuse(self.reread or reread, self.refreshes(stage), self.imported)


class RunRequest(Spread):
    """How a compression is run, and what becomes of it; over what it is spread, as in `Spread`.

    Attributes:
        store: the store's URL.
        name: the name that the delta gets, if any.
        device: where decompositions and calibration run: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: blocks worked on at once; None: one for each core.
        keep_factors: whether each block's decomposition is published, so that other requests reuse it.
        calibration: text for methods that are calibrated; its tokens are part of the id.
        trust: how far what is there already is trusted.
    """

    store: str = Field(default_factory=default_store_url)
    name: str | None = None
    device: str = "auto"
    workers: int | None = Field(default=None, ge=1)
    keep_factors: bool = True
    calibration: CalibrationText | None = None
    trust: Trust = Trust()


class CompressRequest(RunRequest):
    """A compression; see `RunRequest` for how it is run.

    Attributes:
        base: the base checkpoint: a folder, Hub id or fsspec URL; see `open_checkpoint`.
        finetuned: the checkpoint fine-tuned from it, likewise.
        config: method, ratio, and all else that decides on bytes.
        over: name or id of a lossy delta of the same checkpoints, which a lossless one is to hold the residual to.
    """

    base: str
    finetuned: str
    config: CompressConfig
    over: str | None = None


class PlanRequest(Frozen):
    """A compression to foresee; `quality`: whether to foretell what it keeps. The rest is as in `CompressRequest`."""

    base: str
    finetuned: str
    config: CompressConfig
    over: str | None = None
    store: str = Field(default_factory=default_store_url)
    workers: int | None = Field(default=None, ge=1)
    quality: bool = False


class QuantizeRequest(RunRequest):
    """A published delta, compressed again by another method and at another ratio; see `RunRequest` for the rest.

    Attributes:
        ref: the delta's name or id.
        method: a method that quantises.
        cr: the ratio.
        seed: seed of the masks; None: as for the delta.
        options: the method's options; None: its defaults.
        base: where the base lies; None: where it lay.
        finetuned: where the fine-tuned checkpoint lies; None: where it lay.
    """

    ref: str
    cr: float
    method: str = "impart-qt"
    seed: int | None = None
    options: dict[str, Any] | None = None
    base: str | None = None
    finetuned: str | None = None


class ReconstructRequest(Frozen):
    """A checkpoint to rebuild.

    Attributes:
        ref: the delta's name or id.
        base: the checkpoint that it was made against.
        out: the folder to make.
        store: the store's URL.
        overwrite: whether `out` may be replaced when it holds files.
        with_code: whether Python code that the delta brings is written too.
        max_shard_bytes: largest size of one weights file.
    """

    ref: str
    base: str
    out: Path
    store: str = Field(default_factory=default_store_url)
    overwrite: bool = False
    with_code: bool = False
    max_shard_bytes: int = Field(default=DEFAULT_SHARD_BYTES, ge=1)


class MergeRequest(Frozen):
    """Models to merge.

    Attributes:
        stages: the merges of a file, the last of which is the result; places in them are absolute.
        out: the folder that the merged model is written to; None: it is compressed only, as the file says.
        store: the store's URL.
        name: what the result is published under; None: as the file says.
        device: where it is computed: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: tensors that are merged at once; None: one for each core, fewer where many models are merged.
        overwrite: whether `out` may be replaced when it holds a model.
        max_shard_bytes: largest size of one weights file.
        trust: how far what is there already is trusted.
    """

    stages: tuple[MergeFile, ...] = Field(min_length=1)
    out: Path | None = None
    store: str = Field(default_factory=default_store_url)
    name: str | None = None
    device: str = "auto"
    workers: int | None = Field(default=None, ge=1)
    overwrite: bool = False
    max_shard_bytes: int = Field(default=DEFAULT_SHARD_BYTES, ge=1)
    trust: Trust = Trust()

    @property
    def method(self) -> str:
        """The merge method of the last stage."""
        return self.stages[-1].merge_method


class EvaluateRequest(Frozen):
    """A model to measure.

    Attributes:
        model: a checkpoint's folder, Hub id or URL; a delta's name or id; or an adapter's place.
        base: the base of a delta or an adapter, from both of which the model is made in scratch; None: where that of a
            delta lay when it was made.
        tasks: lm-eval task names, or paths of YAML files.
        split: which split of each task.
        limit: only so many items of each; None: all.
        store: the store's URL.
        results_store: the store that the metrics go to, where that is another one: `store` is only read then.
        device: where the model runs.
        run_code: whether tasks may run code that the model writes, in a sandbox.
        run_code_without_sandbox: whether they may without one.
        measuring: how lm-eval measures it.
        trust: how far what is there already is trusted.
    """

    model: str
    base: str | None = None
    tasks: tuple[str, ...]
    split: Split = "test"
    limit: int | None = None
    store: str = Field(default_factory=default_store_url)
    results_store: str | None = None
    device: str = "auto"
    run_code: bool = False
    run_code_without_sandbox: bool = False
    measuring: MeasureOptions = MeasureOptions()
    trust: Trust = Trust()

    @property
    def code(self) -> RunCode:
        """What the two flags come to."""
        if self.run_code_without_sandbox:
            return "unsandboxed"
        return "sandboxed" if self.run_code else "never"


def absolute(location: str | Path) -> str:
    """Return a folder as an absolute path, so that a task means the same wherever it runs; a URL or Hub id as it is.

    Raises:
        ConfigError: it is no place of a checkpoint.
    """
    if not isinstance(location, str | Path) or not str(location).strip():
        raise ConfigError(f"{location!r:.50} is no place of a checkpoint. Give a folder, a Hub id or an fsspec URL.")
    text = str(location)
    return text if isinstance(location, str) and is_remote(text) else str(Path(text).expanduser().absolute())
