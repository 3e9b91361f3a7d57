"""Merged models: what was merged how, so that anybody can make the same again; the weights lie elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from impart_core.base.canonical import canonical_json
from impart_core.store.manifest import Content, Manifest, Sha256, register
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import Reuse, publish
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

MERGE_FILE = "merge.json"
VERSIONS = {"merge": 1}  # raised whenever the same recipe gives other bytes


@register
class MergedContent(Content):
    """A merged model.

    Attributes:
        method: the merge method.
        models: what the file calls the models, the base among them.
        tensors: the number of its tensors.
        merged: id of the checkpoint that it is.
        inputs: ids of the checkpoints among them, by what the file calls them.
        bytes: of its weights.
    """

    kind: Literal["merged"] = "merged"
    plural: ClassVar[str] = "merged models"
    colour: ClassVar[str] = "#f6d9e6"
    listed: ClassVar[bool] = True
    gives: ClassVar[str | None] = "merged"
    files: ClassVar[tuple[str, ...]] = (MERGE_FILE,)
    method: str
    models: tuple[str, ...]
    tensors: int
    merged: Sha256
    inputs: dict[str, Sha256]
    bytes: int

    def summary(self, recipe: Recipe) -> str:  # noqa: ARG002
        """Return the method, and how many models."""
        return f"{self.method} of {len(self.models)} models"

    def checkpoints(self, recipe: Recipe) -> dict[str, str]:  # noqa: ARG002
        """Return the checkpoints among its models, by what the file calls them, and the one that it gives."""
        return {**self.inputs, "merged": self.merged}


def merge_recipe(config: Mapping[str, Any], inputs: Mapping[str, Any]) -> Recipe:
    """Return what makes a merged model: the merge without places, and its models by content."""
    return Recipe(operation="merge", version=VERSIONS["merge"], config=dict(config), inputs=dict(inputs))


def publish_merged(
    store: Store,
    recipe: Recipe,
    content: MergedContent,
    file: Mapping[str, Any],
    parents: Sequence[str],
    watch: Stopwatch,
    *,
    reuse: Reuse = Reuse(),  # noqa: B008 - frozen
) -> Manifest:
    """Publish what was merged how; return the manifest in force.

    Args:
        store: where it goes.
        recipe: what `merge_recipe` returned.
        content: what it is.
        file: the merge file as JSON, with the places of the models.
        parents: ids of the artifacts among its models.
        watch: started when the work began.
        reuse: as in `publish`.
    """

    def write(path: Path) -> None:
        path.write_bytes(canonical_json(file))

    return publish(store, recipe, content, {MERGE_FILE: write}, watch, parents=tuple(parents), reuse=reuse)
