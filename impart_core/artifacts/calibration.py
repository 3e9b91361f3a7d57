"""Calibration as artifacts: the tokens of a text, what each layer is given for them, and scales distilled with them."""

from collections.abc import Callable, Mapping, Sequence
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
from impart_core.calibrate.text import tokens_digest
from impart_core.checkpoint.header import read_header
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.writer import spec_of, write_safetensors
from impart_core.compress_layer import Batch
from impart_core.config import CompressConfig
from impart_core.errors import CheckpointError, CorruptArtifactError
from impart_core.files import scratch_folder

TOKENS_FILE, SCALES_FILE = "tokens.safetensors", "scales.safetensors"
Content = CalibrationContent | ScalesContent
_TOKENS, _HIDDEN = "tokens", "hidden"
_TEXT_VERSION = 1
_ACTIVATIONS_VERSION = 1  # raised whenever the same layers give other activations
_DISTIL_VERSION = 1
BATCH_TOKENS = 8192  # of one batch, which sums of float32 depend on


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
    """Activations on their way to the store: batches wait in scratch until all are there."""

    def __init__(self, folder: Path) -> None:
        """Write batches to a folder that exists."""
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._shapes: list[tuple[int, ...]] = []

    def add(self, number: int, hidden: torch.Tensor) -> None:
        """Write one batch, (B, L, H)."""
        name = f"batch-{number:05d}.safetensors"
        self._files[name] = self._folder / name
        stored = hidden.cpu().contiguous()
        with busy():
            write_safetensors(self._files[name], [spec_of(_HIDDEN, stored)], lambda _: stored, {})
        self._shapes.append(tuple(stored.shape))

    def publish(self, store: Store, recipe: Recipe, name: str, watch: Stopwatch, *, replace: bool = False) -> Manifest:
        """Publish all batches as what a layer is given; return the manifest in force. `replace` as in `Store`."""
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

    def batch(path: Path) -> Callable[[], torch.Tensor]:
        return lambda: _read(path)[_HIDDEN]

    return [batch(path) for path in paths]


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


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        infos, _ = read_header(local_file(path))
        with busy():
            return {name: read_tensor(info) for name, info in infos.items()}
    except CheckpointError as error:
        raise CorruptArtifactError(f"{path} is damaged: {error}") from error
