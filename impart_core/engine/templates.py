"""Templates of a search as models: each candidate is made into one that can be scored, and known before it is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from impart_core.artifacts.delta import DeltaContent, delta_recipe
from impart_core.base.errors import ConfigError
from impart_core.blocks.coding import calibration_of
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.text import CalibrationText
from impart_core.checkpoint.digest import checkpoint_id
from impart_core.checkpoint.index import Checkpoint
from impart_core.engine.compress import compress
from impart_core.engine.executor import Executor, ThreadExecutor
from impart_core.engine.preflight import check_compress, open_sides
from impart_core.engine.references import Run
from impart_core.engine.requests import CompressRequest, absolute
from impart_core.engine.stages import digest_checkpoint
from impart_core.searching.file import SearchFile
from impart_core.store.store import Store

_PLACES = ("base", "finetuned", "calibration")


@dataclass(frozen=True)
class Model:
    """A candidate's model, ready to be scored; attributes as in `TrialJob`, whose fields these are.

    Attributes:
        checkpoint: the model where it is a checkpoint.
        delta: the id of its artifact where it is a delta.
        base: the base of a delta.
        merged: the id of the recipe that merges the checkpoint.
        parents: ids of artifacts that it was made from.
    """

    checkpoint: Checkpoint | None = None
    delta: str | None = None
    base: Checkpoint | None = None
    merged: str | None = None
    parents: tuple[str, ...] = ()


class Template(Protocol):
    """What a search fills; small, and the same in any process."""

    @property
    def base(self) -> Checkpoint:
        """The base."""

    @property
    def experts(self) -> Mapping[str, Checkpoint]:
        """The fine-tunes that candidates are made of by their names, which the winner is held against."""

    def checkpoints(self) -> dict[str, object]:
        """Return what stands for its checkpoints in the recipe of a study, by role."""

    def check(self, filled: Mapping[str, Any], run: Run) -> None:
        """Raise an `ImpartError` where a candidate cannot be made, without making it."""

    def inputs(self, filled: Mapping[str, Any]) -> dict[str, object] | None:
        """Return what stands for a candidate's model in the recipe of a trial; None: it is not known before it is made.

        Raises:
            ImpartError: the candidate cannot be made.
        """

    def bytes_of(self, inputs: Mapping[str, object], store: Store) -> int | None:
        """Return how many bytes a candidate takes up in the store; None: it is not there."""

    def model_of(self, filled: Mapping[str, Any], run: Run) -> Model:
        """Make a candidate's model, or find it in the store.

        Raises:
            ImpartError: it cannot be made.
        """


@dataclass(frozen=True)
class CompressTemplate:
    """Compressions of one fine-tune.

    Attributes:
        base: the base.
        finetuned: the fine-tune.
        label: what people call the fine-tune.
        calibration: where calibration text comes from, if any is given.
        digests: of the tensors of both.
    """

    base: Checkpoint
    finetuned: Checkpoint
    label: str
    calibration: str | None
    digests: tuple[dict[str, str], dict[str, str]] = field(repr=False)

    @property
    def experts(self) -> dict[str, Checkpoint]:
        """The fine-tune."""
        return {self.label: self.finetuned}

    def checkpoints(self) -> dict[str, object]:
        """Return the ids of both by role."""
        return {"base": checkpoint_id(self.digests[0]), "finetuned": checkpoint_id(self.digests[1])}

    def check(self, filled: Mapping[str, Any], run: Run) -> None:
        """Check a candidate's request."""
        check_compress(self._request(filled, run), (self.base, self.finetuned))

    def inputs(self, filled: Mapping[str, Any]) -> dict[str, object] | None:
        """Return the delta's id, where it does not depend on calibration text."""
        config = _config(filled)
        if calibration_of(config) != "none":
            return None
        return {"delta": delta_recipe(self.base, self.finetuned, config, self.digests).id}

    def bytes_of(self, inputs: Mapping[str, object], store: Store) -> int | None:
        """Return the bytes of the delta's blocks and files."""
        manifest = store.lookup(str(inputs["delta"]))
        return manifest.content.data_bytes if manifest and isinstance(manifest.content, DeltaContent) else None

    def model_of(self, filled: Mapping[str, Any], run: Run) -> Model:
        """Compress the fine-tune, or find its delta in the store."""
        request = self._request(filled, run)
        checked = check_compress(request, (self.base, self.finetuned))
        with ThreadExecutor(1) as executor:
            delta = compress(request, executor, checked=checked, run_id=run.id).report.artifact
        return Model(delta=delta, base=self.base)

    def _request(self, filled: Mapping[str, Any], run: Run) -> CompressRequest:
        config = _config(filled)
        text = CalibrationText(source=self.calibration) if self.calibration else None
        return CompressRequest(
            base=self.base.location,
            finetuned=self.finetuned.location,
            config=config,
            store=run.store,
            device=run.device,
            trust=run.trust,
            workers=1,
            calibration=text if calibration_of(config) != "none" else None,
        )


def open_template(file: SearchFile, executor: Executor) -> Template:
    """Open the template of a search.

    Raises:
        ImpartError: it cannot be; the message says what to change.
    """
    if file.compress is not None:
        return _compress_template(file.compress, executor)
    raise ConfigError("Templates of merges cannot be searched yet. Give compress: with holes in it.")


def _compress_template(template: Mapping[str, Any], executor: Executor) -> CompressTemplate:
    for name in ("base", "finetuned"):
        if name not in template:
            raise ConfigError(f"compress.{name} is required: a folder, a Hub id or a URL.")
    for name in _PLACES:
        if name in template and not isinstance(template[name], str):
            raise ConfigError(f"compress.{name} is {template[name]!r:.60}; it must be one place, and no hole.")
    base, finetuned = open_sides(absolute(template["base"]), absolute(template["finetuned"]))
    sides = [executor.submit(digest_checkpoint, side, False) for side in (base, finetuned)]
    label = finetuned.location.rstrip("/").rpartition("/")[2]
    return CompressTemplate(base, finetuned, label, template.get("calibration"), (sides[0].result(), sides[1].result()))


def _config(filled: Mapping[str, Any]) -> CompressConfig:
    return CompressConfig(**{name: value for name, value in filled["compress"].items() if name not in _PLACES})
