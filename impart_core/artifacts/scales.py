"""Gains that distillation found for the tensors of a delta, and trainings of them that are under way."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from impart_core.artifacts.tensors import publish_tensors, read_tensors
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.distil import BATCH, SEGMENTS, State, ends_of_segments
from impart_core.store.manifest import Content, Manifest, register
from impart_core.store.provenance import Stopwatch
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

VERSIONS = {"scales": 2}  # raised whenever the same recipe gives other gains
_STATE = ("gains", "first", "second", "best")
_FIGURES = "figures"


@register
class ScalesContent(Content):
    """Gains of a delta's tensors that distillation found.

    Attributes:
        matrices: of how many tensors; 0 where none are better than 1.
        steps: of the training, so far; 0: by a former version.
        untrained: mean divergence from the fine-tune's predictions over the sequences held out, in nats a token,
            while all gains are 1.
        trained: the same with the gains as they are stored.
    """

    kind: Literal["scales"] = "scales"
    plural: ClassVar[str] = "scales"
    colour: ClassVar[str] = "#dff0f5"
    files: ClassVar[tuple[str, ...]] = ("scales.safetensors",)
    matrices: int = Field(ge=0)
    steps: int = Field(default=0, ge=0)
    untrained: float = 0.0
    trained: float = 0.0

    def summary(self, recipe: Recipe) -> str:  # noqa: ARG002
        """Return how many there are, and what they gained."""
        held_out = f", divergence {self.untrained:.4g} → {self.trained:.4g}" if self.steps else ""
        return f"of {self.matrices} matrices{held_out}"


def scales_recipe(
    config: CompressConfig, calibration: str, blocks: Sequence[str], finetuned: Mapping[str, str], model: str
) -> Recipe:
    """Return what makes distilled gains.

    Args:
        config: the request.
        calibration: id of the text.
        blocks: ids of the delta's blocks before, in the model's order.
        finetuned: digests of the tensors of the fine-tuned checkpoint.
        model: digest of the model's configuration.
    """
    settings = config.projections.options.model_dump(mode="json")
    own = {name: value for name, value in settings.items() if name.startswith("distil")}
    fixed = {"seed": config.seed, "batch": BATCH, "segments": SEGMENTS}
    inputs = {"calibration": calibration, "blocks": list(blocks), "model": model, "finetuned": dict(finetuned)}
    return Recipe(operation="distil", version=VERSIONS["scales"], config=own | fixed, inputs=inputs)


def state_recipes(recipe: Recipe, steps: int) -> dict[int, Recipe]:
    """Return what makes the states on the way to gains, by steps done, rising; of the last none is kept."""
    ends = ends_of_segments(steps)[:-1]
    return {end: recipe.model_copy(update={"config": {**recipe.config, "after": end}}) for end in ends}


def publish_scales(
    store: Store, recipe: Recipe, gains: Mapping[str, torch.Tensor], state: State, trained: float, watch: Stopwatch
) -> Manifest:
    """Publish the gains of tensors by name, float32, of a training that is over; return the manifest in force.

    Blocks without gains are no parents: they are of no more use, and may be cleaned up.
    """
    figures = {"steps": state.step, "untrained": state.untrained, "trained": trained}
    content = ScalesContent(matrices=len(gains), **figures)
    return publish_tensors(store, recipe, content, gains, watch, (recipe.inputs["calibration"],))


def read_scales(store: Store, artifact_id: str) -> dict[str, torch.Tensor]:
    """Return published gains by tensor; errors as in `read_tensors`."""
    return read_tensors(store, artifact_id, ScalesContent)


def publish_state(store: Store, recipe: Recipe, state: State, watch: Stopwatch) -> Manifest:
    """Publish a training that is not over; return the manifest in force."""
    content = ScalesContent(matrices=0, steps=state.step, untrained=state.untrained, trained=state.least)
    figures = torch.tensor([state.step, state.best_step, state.untrained, state.least], dtype=torch.float64)
    tensors = {name: getattr(state, name) for name in _STATE}
    return publish_tensors(store, recipe, content, {**tensors, _FIGURES: figures}, watch)


def read_state(store: Store, artifact_id: str) -> State:
    """Return a published training; errors as in `read_tensors`."""
    found = read_tensors(store, artifact_id, ScalesContent)
    step, best_step, untrained, least = found.pop(_FIGURES).tolist()
    return State(step=int(step), best_step=int(best_step), untrained=untrained, least=least, **found)
