"""Templates of a search as models: each candidate is made into one that can be scored, and known before it is made."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from impart_core.artifacts.calibration_text import calibration_recipe, read_calibration
from impart_core.artifacts.delta import delta_recipe, file_bytes
from impart_core.base.errors import ConfigError
from impart_core.base.retry import patiently
from impart_core.blocks.coding import needs_text
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.text import PUBLISHED, CalibrationText, check_text, read_tokens, require_taken
from impart_core.checkpoint.digest import carried_digests, checkpoint_id
from impart_core.checkpoint.index import Checkpoint
from impart_core.engine.compress import compress
from impart_core.engine.executor import Executor, ThreadExecutor
from impart_core.engine.merge_template import open_merge_template
from impart_core.engine.preflight import check_compress, open_sides
from impart_core.engine.references import Run
from impart_core.engine.requests import CompressRequest, absolute
from impart_core.engine.stages import digest_checkpoint
from impart_core.engine.template import Model, Template
from impart_core.searching.file import SearchFile
from impart_core.store.names import resolve
from impart_core.store.store import Store

_PLACES = ("base", "finetuned", "calibration")


@dataclass(frozen=True)
class CompressTemplate:
    """Compressions of one fine-tune.

    Attributes:
        base: the base.
        finetuned: the fine-tune.
        label: what people call the fine-tune.
        settings: the template without places.
        digests: of the tensors of both.
        calibration: where calibration text comes from, if any is given.
        words: the id of its tokens.
    """

    base: Checkpoint
    finetuned: Checkpoint
    label: str
    settings: Mapping[str, Any]
    digests: tuple[dict[str, str], dict[str, str]] = field(repr=False)
    calibration: str | None = None
    words: str | None = None

    @property
    def experts(self) -> dict[str, Model]:
        """The fine-tune."""
        return {self.label: Model(checkpoint=self.finetuned)}

    @property
    def contents(self) -> dict[str, object]:
        """The ids of both checkpoints and of the text."""
        sides = {"base": checkpoint_id(self.digests[0]), "finetuned": checkpoint_id(self.digests[1])}
        files = {"base_files": carried_digests(self.base), "finetuned_files": carried_digests(self.finetuned)}
        return {**sides, **files, **({"calibration": self.words} if self.words else {})}

    def check(self, filled: Mapping[str, Any], run: Run) -> None:
        """Check a candidate's request."""
        check_compress(self._request(filled, run), (self.base, self.finetuned))

    def inputs(self, filled: Mapping[str, Any]) -> dict[str, object]:
        """Return the delta's id."""
        config = _config(filled)
        words = self.words if needs_text(config) else None
        return {"delta": delta_recipe(self.base, self.finetuned, config, self.digests, words).id}

    def bytes_of(self, filled: Mapping[str, Any], made: Sequence[str], store: Store) -> int | None:  # noqa: ARG002
        """Return the bytes of the delta's files."""
        return file_bytes(store, made[0])

    @contextmanager
    def model_of(self, filled: Mapping[str, Any], run: Run) -> Iterator[Model]:
        """Compress the fine-tune, or find its delta in the store."""
        request = self._request(filled, run)
        checked = patiently("check the request", lambda: check_compress(request, (self.base, self.finetuned)))
        with ThreadExecutor(1) as executor:
            delta = compress(request, executor, checked=checked, run_id=run.id).report.artifact
        yield Model(delta=delta, base=self.base)

    def publish(self, filled: Mapping[str, Any], run: Run) -> str:
        """Return the id of its delta."""
        with self.model_of(filled, run) as model:
            assert model.delta is not None
            return model.delta

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
            calibration=text if needs_text(config) else None,
        )


def open_template(file: SearchFile, store: Store, executor: Executor) -> Template:
    """Open the template of a search; nothing is written.

    Raises:
        ImpartError: it cannot be; the message says what to change.
    """
    if file.compress is not None:
        return _compress_template(file.compress, store, executor)
    return open_merge_template(file.merge or {}, file.space, store, executor)


def _compress_template(template: Mapping[str, Any], store: Store, executor: Executor) -> CompressTemplate:
    for name in ("base", "finetuned"):
        if name not in template:
            raise ConfigError(f"compress.{name} is required: a folder, a Hub id or a URL.")
    for name in _PLACES:
        if name in template and not isinstance(template[name], str):
            raise ConfigError(f"compress.{name} is {template[name]!r:.60}; it must be one place, and no hole.")
    base, finetuned = open_sides(absolute(template["base"]), absolute(template["finetuned"]))
    sides = [executor.submit(digest_checkpoint, side.weights_alone(), False) for side in (base, finetuned)]
    text = template.get("calibration")
    return CompressTemplate(
        base,
        finetuned,
        label=finetuned.location.rstrip("/").rpartition("/")[2],
        settings={name: value for name, value in template.items() if name not in _PLACES},
        digests=(sides[0].result(), sides[1].result()),
        calibration=text,
        words=_words(text, finetuned, store) if text else None,
    )


def _words(source: str, finetuned: Checkpoint, store: Store) -> str:
    """Return the id of the tokens of a calibration text."""
    if source.startswith(PUBLISHED):
        words = resolve(store, source.removeprefix(PUBLISHED))
        require_taken(read_calibration(store, words), finetuned)
        return words
    text = CalibrationText(source=source)
    check_text(text, finetuned)
    return calibration_recipe(read_tokens(text, finetuned)).id


def _config(filled: Mapping[str, Any]) -> CompressConfig:
    return CompressConfig(**{name: value for name, value in filled["compress"].items() if name not in _PLACES})
