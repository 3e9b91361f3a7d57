"""What calibration says of errors in the matrices of a block: their Kronecker factors (see `quantization.kfac`)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from impart_core.artifacts.tensors import publish_tensors, read_tensors
from impart_core.calibrate.layer import BATCH_TOKENS
from impart_core.calibrate.logits import LIKELIEST
from impart_core.calibrate.sensitivity import POINTS
from impart_core.quantization.kfac import Sensitivity
from impart_core.store.manifest import Manifest, NamedContent, register
from impart_core.store.provenance import Stopwatch
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

VERSIONS = {"sensitivity": 2}  # raised whenever the same recipe gives other factors, or other codes by them
_ROWS, _COLUMNS = ":rows", ":columns"


@register
class SensitivityContent(NamedContent):
    """Kronecker factors of the matrices of a block.

    Attributes:
        name: the block's name.
        matrices: of how many.
    """

    kind: Literal["sensitivity"] = "sensitivity"
    plural: ClassVar[str] = "sensitivities"
    colour: ClassVar[str] = "#e9e3f7"
    files: ClassVar[tuple[str, ...]] = ("sensitivity.safetensors",)
    matrices: int = Field(ge=0)

    def summary(self, recipe: Recipe) -> str:  # noqa: ARG002
        """Return whose they are."""
        return f"{self.matrices} matrices of {self.name}"


def sensitivity_recipe(
    block: str, calibration: str, base: Mapping[str, str], finetuned: Mapping[str, str], model: str
) -> Recipe:
    """Return what makes the factors of a block.

    Args:
        block: its name.
        calibration: id of the text.
        base: digests of the tensors of the base.
        finetuned: those of the fine-tuned checkpoint.
        model: digest of its configuration.
    """
    config = {"block": block, "batch_tokens": BATCH_TOKENS, "likeliest": LIKELIEST, "points": list(POINTS)}
    inputs = {"calibration": calibration, "base": dict(base), "finetuned": dict(finetuned), "model": model}
    return Recipe(operation="sensitivity", version=VERSIONS["sensitivity"], config=config, inputs=inputs)


def publish_sensitivity(
    store: Store, recipe: Recipe, sensitivities: Mapping[str, Sensitivity], watch: Stopwatch
) -> Manifest:
    """Publish the factors of a block's matrices by name; return the manifest in force."""
    tensors: dict[str, torch.Tensor] = {}
    for name, one in sensitivities.items():
        tensors |= {f"{name}{_ROWS}": one.rows.contiguous(), f"{name}{_COLUMNS}": one.columns.contiguous()}
    content = SensitivityContent(name=recipe.config["block"], matrices=len(sensitivities))
    return publish_tensors(store, recipe, content, tensors, watch, (recipe.inputs["calibration"],))


def read_sensitivity(store: Store, artifact_id: str) -> dict[str, Sensitivity]:
    """Return published factors by matrix; errors as in `read_tensors`."""
    tensors = read_tensors(store, artifact_id, SensitivityContent)
    names = [key.removesuffix(_ROWS) for key in tensors if key.endswith(_ROWS)]
    return {name: Sensitivity(tensors[name + _ROWS], tensors[name + _COLUMNS]) for name in names}
