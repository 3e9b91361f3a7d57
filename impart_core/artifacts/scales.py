"""Scales of a delta's matrices that distillation found."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from impart_core.artifacts.tensors import publish_tensors, read_tensors
from impart_core.blocks.request import CompressConfig
from impart_core.store.manifest import Content, Manifest, register
from impart_core.store.provenance import Stopwatch
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

VERSIONS = {"scales": 1}


@register
class ScalesContent(Content):
    """Scales of a delta's matrices that distillation found, and of how many matrices."""

    kind: Literal["scales"] = "scales"
    plural: ClassVar[str] = "scales"
    colour: ClassVar[str] = "#dff0f5"
    files: ClassVar[tuple[str, ...]] = ("scales.safetensors",)
    matrices: int = Field(ge=0)

    def summary(self, recipe: Recipe) -> str:  # noqa: ARG002
        """Return how many there are."""
        return f"of {self.matrices} matrices"


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
    settings = config.projections.model_dump(mode="json")
    inputs = {"calibration": calibration, "model": model, **digests}
    return Recipe(operation="distil", version=VERSIONS["scales"], config=settings, inputs=inputs)


def publish_scales(
    store: Store, recipe: Recipe, scales: Mapping[str, torch.Tensor], calibration: str, watch: Stopwatch
) -> Manifest:
    """Publish the scales of matrices by name, float32; return the manifest in force."""
    return publish_tensors(store, recipe, ScalesContent(matrices=len(scales)), scales, watch, (calibration,))


def read_scales(store: Store, artifact_id: str) -> dict[str, torch.Tensor]:
    """Return published scales by matrix; errors as in `read_tensors`."""
    return read_tensors(store, artifact_id, ScalesContent)
