"""Activations: what a decoder layer is given for calibration text, passed from layer to layer through the store."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Literal

import torch

from impart_core.artifacts.tensors import tensor_places
from impart_core.calibrate.layer import BATCH_TOKENS, Batch
from impart_core.calibrate.logits import LIKELIEST
from impart_core.checkpoint.header import TensorInfo
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.writer import write_tensors
from impart_core.store.manifest import Manifest, NamedContent, register
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import Reuse, publish
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

VERSIONS = {"activations": 2, "predictions": 1}  # raised whenever the same layers give others
FILE_BATCHES = 4


@register
class ActivationsContent(NamedContent):
    """What a decoder layer is given for calibration text, in float32: the layer's block, and (sequences, length, H).

    Or what a whole model predicts for it, k log-probabilities and k tokens of each: (sequences, length, 2k).
    """

    kind: Literal["activations"] = "activations"
    plural: ClassVar[str] = "activations"
    colour: ClassVar[str] = "#f5dfee"
    shape: tuple[int, int, int]


def activations_recipe(calibration: str, after: Sequence[str], model: str) -> Recipe:
    """Return what makes a layer's activations.

    Args:
        calibration: id of the text.
        after: ids of the blocks that the layer before it, or what embeds tokens, was made as.
        model: digest of the model's configuration.
    """
    inputs = {"calibration": calibration, "after": list(after), "model": model}
    return Recipe(
        operation="activations", version=VERSIONS["activations"], config={"batch_tokens": BATCH_TOKENS}, inputs=inputs
    )


def predictions_recipe(calibration: str, finetuned: Mapping[str, str], model: str) -> Recipe:
    """Return what makes a fine-tuned model's predictions: see `calibrate.logits.predictions`.

    Args:
        calibration: id of the text.
        finetuned: digests of its tensors.
        model: digest of its configuration.
    """
    inputs = {"calibration": calibration, "finetuned": dict(finetuned), "model": model}
    config = {"batch_tokens": BATCH_TOKENS, "likeliest": LIKELIEST}
    return Recipe(operation="predictions", version=VERSIONS["predictions"], config=config, inputs=inputs)


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
            write_tensors(self._files[name], self._waiting)
            self._waiting.clear()

    def publish(self, store: Store, recipe: Recipe, name: str, watch: Stopwatch, *, replace: bool = False) -> Manifest:
        """Publish all batches as what a layer is given; return the manifest in force. `replace` as in `Store`."""
        self._write()
        sequences, (_, length, width) = sum(shape[0] for shape in self._shapes), self._shapes[0]
        content = ActivationsContent(name=name, shape=(sequences, length, width))
        files = dict(sorted(self._files.items()))
        return publish(store, recipe, content, files, watch, reuse=Reuse(True, replace), read_again=True)


def open_activations(store: Store, manifest: Manifest, stack: ExitStack) -> list[Batch]:
    """Return a layer's activations batch by batch, from local files that last as long as `stack`.

    Raises:
        CorruptArtifactError: a file is missing or damaged.
    """
    paths = [stack.enter_context(store.local_file(manifest, file.name, verified=True)) for file in manifest.files]

    def batch(info: TensorInfo) -> Batch:
        sequences, length, width = info.shape
        return Batch((sequences, length, width), lambda: read_tensor(info))

    return [batch(info) for path in paths for _, info in sorted(tensor_places(path).items())]
