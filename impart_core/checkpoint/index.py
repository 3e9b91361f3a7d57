"""A checkpoint as an index: every tensor's place, read from headers only."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.header import DTYPES, FLOAT8, TensorInfo, read_header
from impart_core.checkpoint.location import open_folder
from impart_core.checkpoint.source import MemoryFile, SourceFile, read_json, require_small
from impart_core.checkpoint.weights import find_weights

CONFIG = "config.json"
CARD = "README.md"

# Files beside the weights that a complete Hugging Face folder has and that a rebuilt one should have too.
CARRIED = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's index.

    Attributes:
        location: its folder, as it was given; a Hub id with the commit that is being read.
        config: the parsed config.json.
        tensors: every tensor by name, names sorted.
        carried: the configuration, tokenizer and generation files that are present, by name.
        nbytes: bytes where it lies: weights, shard index and carried files.
        card: its model card, where it has one.
        notes: sentences on what was found that whoever uses it should know.
    """

    location: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    carried: Mapping[str, SourceFile]
    nbytes: int
    card: SourceFile | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Make its mappings read-only."""
        for name in ("config", "tensors", "carried"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[type["Checkpoint"], tuple[Any, ...]]:
        """Pickle it with plain mappings: read-only ones cannot be."""
        values = (getattr(self, field.name) for field in fields(self))
        return Checkpoint, tuple(dict(value) if isinstance(value, Mapping) else value for value in values)

    def with_files_at_hand(self) -> "Checkpoint":
        """Return the checkpoint with what is carried of it read, so that none of these files is fetched twice."""
        carried = {name: file if file.is_local else file.in_memory() for name, file in self.carried.items()}
        return replace(self, carried=carried)

    def without_settings(self, keys: Iterable[str]) -> "Checkpoint":
        """Return the checkpoint with a configuration that lacks these keys."""
        config = {key: value for key, value in self.config.items() if key not in keys}
        if len(config) == len(self.config):
            return self
        data = (json.dumps(config, indent=2) + "\n").encode()
        file = MemoryFile(self.carried[CONFIG].location, len(data), None, data)
        return replace(self, config=config, carried={**self.carried, CONFIG: file})


def open_checkpoint(location: Path | str) -> Checkpoint:
    """Index a Hugging Face checkpoint with single or sharded safetensors.

    Args:
        location: a folder, a Hub id (`org/name`, `org/name@revision`) or an fsspec URL; see `open_folder`.

    Raises:
        CheckpointError: the folder, its config or its safetensors are missing or do not hold together.
        UnreachableError: its place does not answer now.
    """
    folder = open_folder(location)
    config = folder.file(CONFIG)
    if config is None:
        inside = ", ".join(sorted(folder.entries)[:8]) or "nothing"
        raise CheckpointError(
            f"{folder.location} has no {CONFIG} (it holds {inside}). Give a Hugging Face model folder."
        )
    if not config.is_local:
        require_small(config)
        config = config.in_memory()
    settings = read_json(config)
    weights = find_weights(folder, settings)
    tensors = _tensors(weights.files)
    if not tensors:
        raise CheckpointError(f"The safetensors files in {folder.location} hold no tensors.")
    missing = sorted(weights.listed - tensors.keys())
    if missing:
        raise CheckpointError(
            f"{weights.index} lists {len(missing)} tensors that no shard holds, first {missing[0]!r}. "
            "Copy the shards again."
        )
    carried = {name: file for name in CARRIED if (file := folder.file(name)) is not None} | {CONFIG: config}
    counted = [*weights.files, *carried.values(), *([weights.index] if weights.index else [])]
    return Checkpoint(
        location=folder.location,
        config=settings,
        tensors=dict(sorted(tensors.items())),
        carried=carried,
        nbytes=sum(file.size for file in counted),
        card=folder.file(CARD),
        notes=weights.notes,
    )


def _tensors(files: Iterable[SourceFile]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        found, _ = read_header(file, DTYPES | FLOAT8)
        for name in found.keys() & tensors.keys():
            raise CheckpointError(
                f"Tensor {name!r} is in both {tensors[name].file} and {file}. "
                "Remove the files that are left over from another save."
            )
        tensors.update(found)
    return tensors
