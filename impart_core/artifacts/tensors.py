"""Artifacts that hold one safetensors file of tensors and nothing else."""

from collections.abc import Mapping
from pathlib import Path

import torch

from impart_core.base.errors import CheckpointError, CorruptArtifactError
from impart_core.checkpoint.header import TensorInfo, read_header
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.writer import write_tensors
from impart_core.store.manifest import Content, Manifest
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import REREAD, publish
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store


def publish_tensors(
    store: Store,
    recipe: Recipe,
    content: Content,
    tensors: Mapping[str, torch.Tensor],
    watch: Stopwatch,
    parents: tuple[str, ...] = (),
) -> Manifest:
    """Publish tensors by name as the one file of an artifact; return the manifest in force."""
    (file,) = content.files
    files = {file: lambda path: write_tensors(path, tensors)}
    return publish(store, recipe, content, files, watch, parents=parents, reuse=REREAD)


def read_tensors(store: Store, artifact_id: str, kind: type[Content]) -> dict[str, torch.Tensor]:
    """Return the tensors of such an artifact by name.

    Raises:
        ArtifactNotFoundError: there is none.
        CorruptArtifactError: it is damaged, or of another kind.
    """
    manifest = store.manifest(artifact_id)
    if not isinstance(manifest.content, kind):
        wanted = kind.model_fields["kind"].default
        raise CorruptArtifactError(f"Artifact {artifact_id[:12]} is of kind {manifest.content.kind}, no {wanted}.")
    (file,) = kind.files
    with store.local_file(manifest, file, verified=True) as path:
        try:
            return {name: read_tensor(info) for name, info in tensor_places(path).items()}
        except CheckpointError as error:
            raise CorruptArtifactError(f"{path} is damaged: {error}") from error


def tensor_places(path: Path) -> dict[str, TensorInfo]:
    """Return where each tensor of a local file lies.

    Raises:
        CorruptArtifactError: it is not safetensors.
    """
    try:
        return read_header(local_file(path))[0]
    except CheckpointError as error:
        raise CorruptArtifactError(f"{path} is damaged: {error}") from error
