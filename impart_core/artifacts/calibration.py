"""Calibration as artifacts: the tokens of a text, what each layer is given for them, and scales distilled with them."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from impart_core.artifacts.identity import Recipe
from impart_core.artifacts.manifest import (
    ActivationsContent,
    CalibrationContent,
    Manifest,
    ScalesContent,
)
from impart_core.artifacts.provenance import Stopwatch
from impart_core.artifacts.store import Store, file_entry
from impart_core.busy import busy
from impart_core.calibrate.layer import Batch
from impart_core.calibrate.text import tokens_digest
from impart_core.checkpoint.header import TensorInfo, read_header
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.writer import spec_of, write_safetensors
from impart_core.config import CompressConfig
from impart_core.errors import CheckpointError, CorruptArtifactError
from impart_core.files import scratch_folder

TOKENS_FILE, SCALES_FILE = "tokens.safetensors", "scales.safetensors"
Content = CalibrationContent | ScalesContent
_TOKENS = "tokens"
_TEXT_VERSION = 1
_ACTIVATIONS_VERSION = 2  # raised whenever the same layers give other activations
_DISTIL_VERSION = 1
BATCH_TOKENS = 2048  # of one batch, which sums of float32 depend on
FILE_BATCHES = 4


def calibration_recipe(tokens: torch.Tensor) -> Recipe:
    """Return what makes calibration text: its tokens, int32, (sequences, length), wherever they come from."""
    sequences, length = tokens.shape
    config = {"sequences": sequences, "length": length}
    return Recipe(
        operation="calibration-text", version=_TEXT_VERSION, config=config, inputs={"tokens": tokens_digest(tokens)}
    )


def publish_calibration(store: Store, recipe: Recipe, tokens: torch.Tensor, watch: Stopwatch) -> Manifest:
    """Publish calibration text; return the manifest in force."""
    sequences, length = tokens.shape
    content = CalibrationContent(sequences=sequences, length=length)
    return _publish(store, recipe, {TOKENS_FILE: {_TOKENS: tokens.to(torch.int32)}}, content, watch)


def read_calibration(store: Store, artifact_id: str) -> torch.Tensor:
    """Return the tokens of published calibration text, int32, (sequences, length).

    Raises:
        ArtifactNotFoundError: there is none.
        CorruptArtifactError: it is damaged, or another artifact.
    """
    return _opened(store, artifact_id, CalibrationContent, TOKENS_FILE, "calibration text")[_TOKENS]


def batch_size(length: int) -> int:
    """Return how many sequences of this length are run together."""
    return max(1, BATCH_TOKENS // length)


def activations_recipe(calibration: str, after: Sequence[str], model: str) -> Recipe:
    """Return what makes a layer's activations.

    Args:
        calibration: id of the text.
        after: ids of the blocks that the layer before it, or what embeds tokens, was made as.
        model: digest of the model's configuration.
    """
    inputs = {"calibration": calibration, "after": list(after), "model": model}
    return Recipe(
        operation="activations", version=_ACTIVATIONS_VERSION, config={"batch_tokens": BATCH_TOKENS}, inputs=inputs
    )


class Spill:
    """Activations on their way to the store: batches wait in scratch, some in a file, until all are there."""

    def __init__(self, folder: Path) -> None:
        """Write batches to a folder that exists."""
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._shapes: list[tuple[int, ...]] = []
        self._waiting: dict[str, torch.Tensor] = {}

    def add(self, number: int, hidden: torch.Tensor) -> None:
        """Take one batch, (B, L, H); they come in their order."""
        self._waiting[f"hidden-{number:06d}"] = hidden.cpu().contiguous()
        self._shapes.append(tuple(hidden.shape))
        if len(self._waiting) == FILE_BATCHES:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            name = f"batches-{len(self._files):05d}.safetensors"
            self._files[name] = self._folder / name
            with busy():
                specs = [spec_of(*item) for item in sorted(self._waiting.items())]
                write_safetensors(self._files[name], specs, self._waiting.__getitem__, {})
            self._waiting.clear()

    def publish(self, store: Store, recipe: Recipe, name: str, watch: Stopwatch, *, replace: bool = False) -> Manifest:
        """Publish all batches as what a layer is given; return the manifest in force. `replace` as in `Store`."""
        self._write()
        sequences, (_, length, width) = sum(shape[0] for shape in self._shapes), self._shapes[0]
        manifest = Manifest.make(
            recipe,
            files=tuple(file_entry(file, path) for file, path in sorted(self._files.items())),
            content=ActivationsContent(name=name, shape=(sequences, length, width)),
            provenance=watch.provenance(),
        )
        return store.publish(manifest, self._files, reread=True, replace=replace)


def open_activations(store: Store, manifest: Manifest, stack: ExitStack) -> list[Batch]:
    """Return a layer's activations batch by batch, from local files that last as long as `stack`.

    Raises:
        CorruptArtifactError: a file is missing or damaged.
    """
    paths = [stack.enter_context(store.local_file(manifest, file.name, verified=True)) for file in manifest.files]

    def batch(info: TensorInfo) -> Batch:
        sequences, length, width = info.shape
        return Batch((sequences, length, width), lambda: read_tensor(info))

    return [batch(info) for path in paths for _, info in sorted(_infos(path).items())]


def scales_recipe(
    config: CompressConfig, calibration: str, digests: Mapping[str, Mapping[str, str]], model: str
) -> Recipe:
    """Return what makes distilled scales.

    Args:
        config: the request.
        calibration: id of the text.
        digests: of the tensors of the base and of the fine-tuned checkpoint, by side.
        model: digest of the model's configuration.
    """
    settings = config.model_dump(mode="json", include={"method", "cr", "seed", "accounting", "options"})
    inputs = {"calibration": calibration, "model": model, **digests}
    return Recipe(operation="distil", version=_DISTIL_VERSION, config=settings, inputs=inputs)


def publish_scales(
    store: Store, recipe: Recipe, scales: Mapping[str, torch.Tensor], calibration: str, watch: Stopwatch
) -> Manifest:
    """Publish the scales of matrices by name, float32; return the manifest in force."""
    content = ScalesContent(matrices=len(scales))
    return _publish(store, recipe, {SCALES_FILE: dict(scales)}, content, watch, parents=(calibration,))


def read_scales(store: Store, artifact_id: str) -> dict[str, torch.Tensor]:
    """Return published scales by matrix; errors as in `read_calibration`."""
    return _opened(store, artifact_id, ScalesContent, SCALES_FILE, "distilled scales")


def _opened(store: Store, artifact_id: str, kind: type[Content], file: str, what: str) -> dict[str, torch.Tensor]:
    manifest = store.manifest(artifact_id)
    if not isinstance(manifest.content, kind):
        raise CorruptArtifactError(f"Artifact {artifact_id[:12]} is a {manifest.content.kind}, no {what}.")
    with store.local_file(manifest, file, verified=True) as path:
        return _read(path)


def _publish(
    store: Store,
    recipe: Recipe,
    files: Mapping[str, Mapping[str, torch.Tensor]],
    content: Content,
    watch: Stopwatch,
    parents: tuple[str, ...] = (),
) -> Manifest:
    with scratch_folder() as scratch:
        for name, tensors in files.items():
            specs = [spec_of(key, tensor) for key, tensor in sorted(tensors.items())]
            write_safetensors(scratch / name, specs, tensors.__getitem__, {})
        manifest = Manifest.make(
            recipe,
            parents=parents,
            files=tuple(file_entry(name, scratch / name) for name in files),
            content=content,
            provenance=watch.provenance(),
        )
        return store.publish(manifest, {name: scratch / name for name in files}, reread=True)


def _infos(path: Path) -> dict[str, TensorInfo]:
    try:
        return read_header(local_file(path))[0]
    except CheckpointError as error:
        raise CorruptArtifactError(f"{path} is damaged: {error}") from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        with busy():
            return {name: read_tensor(info) for name, info in _infos(path).items()}
    except CheckpointError as error:
        raise CorruptArtifactError(f"{path} is damaged: {error}") from error
