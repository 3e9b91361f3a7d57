"""Calibration text as tokens, wherever the text came from."""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from impart_core.artifacts.tensors import publish_tensors, read_tensors
from impart_core.calibrate.text import tokens_digest
from impart_core.store.manifest import Content, Manifest, register
from impart_core.store.provenance import Stopwatch
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

VERSIONS = {"calibration": 1}
_TOKENS = "tokens"


@register
class CalibrationContent(Content):
    """Calibration text as tokens: how many sequences, of how many tokens each."""

    kind: Literal["calibration"] = "calibration"
    plural: ClassVar[str] = "calibration texts"
    colour: ClassVar[str] = "#e9dff5"
    files: ClassVar[tuple[str, ...]] = ("tokens.safetensors",)
    sequences: int = Field(ge=1)
    length: int = Field(ge=1)

    def summary(self, recipe: Recipe) -> str:  # noqa: ARG002
        """Return how much text it is."""
        return f"{self.sequences:,} sequences of {self.length:,} tokens"


def calibration_recipe(tokens: torch.Tensor) -> Recipe:
    """Return what makes calibration text: its tokens, int32, (sequences, length), wherever they come from."""
    sequences, length = tokens.shape
    config = {"sequences": sequences, "length": length}
    return Recipe(
        operation="calibration-text",
        version=VERSIONS["calibration"],
        config=config,
        inputs={"tokens": tokens_digest(tokens)},
    )


def publish_calibration(store: Store, recipe: Recipe, tokens: torch.Tensor, watch: Stopwatch) -> Manifest:
    """Publish calibration text; return the manifest in force."""
    sequences, length = tokens.shape
    content = CalibrationContent(sequences=sequences, length=length)
    return publish_tensors(store, recipe, content, {_TOKENS: tokens.to(torch.int32)}, watch)


def read_calibration(store: Store, artifact_id: str) -> torch.Tensor:
    """Return the tokens of published calibration text, int32, (sequences, length).

    Raises:
        ArtifactNotFoundError: there is none.
        CorruptArtifactError: it is damaged, or another artifact.
    """
    return read_tensors(store, artifact_id, CalibrationContent)[_TOKENS]
