"""A checkpoint as an index: every tensor's place, read from headers only."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.header import TensorInfo, read_header
from impart_core.checkpoint.location import open_folder
from impart_core.checkpoint.source import Folder, SourceFile

CONFIG = "config.json"
SINGLE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
_MAX_JSON_BYTES = 64 << 20

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
    """

    location: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    carried: Mapping[str, SourceFile]
    nbytes: int

    def __post_init__(self) -> None:
        """Make its mappings read-only."""
        for name in ("config", "tensors", "carried"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[type["Checkpoint"], tuple[Any, ...]]:
        """Pickle it with plain mappings: read-only ones cannot be."""
        return Checkpoint, (self.location, dict(self.config), dict(self.tensors), dict(self.carried), self.nbytes)

    def with_files_at_hand(self) -> "Checkpoint":
        """Return the checkpoint with what is carried of it read, so that none of these files is fetched twice."""
        carried = {name: file if file.is_local else file.in_memory() for name, file in self.carried.items()}
        return replace(self, carried=carried)


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
    _require_small(config)
    if not config.is_local:
        config = config.in_memory()
    index = folder.file(SHARD_INDEX)
    weight_map = None if index is None else _weight_map(folder, index)
    files = _weight_files(folder, weight_map)
    tensors = _tensors(files)
    if not tensors:
        raise CheckpointError(f"The safetensors files in {folder.location} hold no tensors.")
    missing = sorted((weight_map or {}).keys() - tensors.keys())
    if missing:
        raise CheckpointError(
            f"{index} lists {len(missing)} tensors that no shard holds, first {missing[0]!r}. Copy the shards again."
        )
    carried = {name: file for name in CARRIED if (file := folder.file(name)) is not None} | {CONFIG: config}
    counted = [*{info.file for info in tensors.values()}, *carried.values(), *([index] if index else [])]
    return Checkpoint(
        location=folder.location,
        config=_read_json(config),
        tensors=dict(sorted(tensors.items())),
        carried=carried,
        nbytes=sum(file.size for file in counted),
    )


def _weight_files(folder: Folder, weight_map: Mapping[str, str] | None) -> list[SourceFile]:
    names = sorted(set(weight_map.values())) if weight_map else [SINGLE]
    found = [file for name in names if (file := folder.file(name)) is not None]
    if found:
        return found
    found = [file for name, file in folder.entries.items() if file is not None and name.endswith(".safetensors")]
    if found:
        return sorted(found, key=str)
    pickled = sorted(name for name in folder.entries if name.endswith((".bin", ".pt", ".pth")))
    what = f"only {pickled[0]}, which is a pickle" if pickled else "no weights at all"
    raise CheckpointError(
        f"{folder.location} holds no safetensors ({what}). Checkpoints are read as safetensors only: load the model "
        "and save it with `save_pretrained(..., safe_serialization=True)`."
    )


def _weight_map(folder: Folder, index: SourceFile) -> dict[str, str]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map. Save the checkpoint again.")
    names = {str(name): str(file) for name, file in weight_map.items()}
    for file in set(names.values()):
        if Path(file).name != file:
            raise CheckpointError(f"{index} names {file!r}, which is not a file of its own folder.")
        if folder.file(file) is None:
            raise CheckpointError(f"{index} names {file}, which is missing. Copy the shard there.")
    return names


def _tensors(files: Iterable[SourceFile]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        found, _ = read_header(file)
        for name in found.keys() & tensors.keys():
            raise CheckpointError(
                f"Tensor {name!r} is in both {tensors[name].file} and {file}. "
                "Remove the files that are left over from another save."
            )
        tensors.update(found)
    return tensors


def _read_json(file: SourceFile) -> dict[str, Any]:
    _require_small(file)
    try:
        value = json.loads(file.read(0, file.size).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a JSON object.")
    return value


def _require_small(file: SourceFile) -> None:
    if file.size > _MAX_JSON_BYTES:
        raise CheckpointError(f"{file} has {file.size:,} bytes, far more than such a file needs. Copy it again.")
