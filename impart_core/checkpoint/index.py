"""A checkpoint as an index: every tensor's place, read from headers only."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, adapters_in, read_adapter
from impart_core.checkpoint.carried import files_beside
from impart_core.checkpoint.header import DTYPES, FLOAT8, TensorInfo, read_header
from impart_core.checkpoint.location import open_folder
from impart_core.checkpoint.merging import merge, notes_on
from impart_core.checkpoint.source import Folder, MemoryFile, SourceFile, read_json, require_small
from impart_core.checkpoint.weights import find_weights

CONFIG = "config.json"
CARD = "README.md"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's index.

    Attributes:
        location: its folder, as it was given; a Hub id with the commit that is being read.
        config: the parsed config.json.
        tensors: every tensor by name, names sorted.
        carried: the files beside the weights that the model needs, by name; see `checkpoint.carried`.
        nbytes: bytes where it lies: weights, shard index and carried files.
        card: its model card, where it has one.
        notes: sentences on what was found that whoever uses it should know.
        left: what lies in its folder and is not carried.
        adapter: where the adapter lies that is merged into it; None: it is as it lies there.
    """

    location: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    carried: Mapping[str, SourceFile]
    nbytes: int
    card: SourceFile | None = None
    notes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    adapter: str | None = None

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

    def weights_alone(self) -> "Checkpoint":
        """Return the checkpoint without the files beside its weights: a tokenizer at hand has megabytes."""
        return replace(self, config={}, carried={}, card=None)

    def without_settings(self, keys: Iterable[str]) -> "Checkpoint":
        """Return the checkpoint with a configuration that lacks these keys."""
        config = {key: value for key, value in self.config.items() if key not in keys}
        if len(config) == len(self.config):
            return self
        data = (json.dumps(config, indent=2) + "\n").encode()
        file = MemoryFile(self.carried[CONFIG].location, len(data), None, data)
        return replace(self, config=config, carried={**self.carried, CONFIG: file})


def open_checkpoint(location: Path | str, base: Checkpoint | None = None) -> Checkpoint:
    """Index a Hugging Face checkpoint with single or sharded safetensors, or a PEFT adapter merged into its base.

    As transformers does, an adapter that lies in the folder of a whole model is merged into that model.

    Args:
        location: a folder, a Hub id (`org/name`, `org/name@revision`) or an fsspec URL; see `open_folder`.
        base: what an adapter that lies alone is merged into.

    Raises:
        CheckpointError: the folder, its config or its safetensors are missing or do not hold together; or it is an
            adapter that cannot be merged, or one that lies alone and there is no base.
        UnreachableError: its place does not answer now.
    """
    folder = open_folder(location)
    adapter = read_adapter(folder)
    if adapter is None:
        return _whole(folder)
    if folder.file(CONFIG) is not None and _has_weights(folder):
        return _merged(adapter, folder, _whole(folder))
    if base is None:
        called = f" (it calls it {adapter.base_name!r})" if adapter.base_name else ""
        raise CheckpointError(
            f"{folder.location} is a PEFT adapter, not a whole model. Give the base that it was trained on{called} "
            "beside it, or merge the two and give that folder."
        )
    return _merged(adapter, folder, base)


def _whole(folder: Folder) -> Checkpoint:
    config = folder.file(CONFIG)
    if config is None:
        inside = ", ".join(sorted(folder.entries)[:8]) or "nothing"
        several = (
            f" It holds adapters in {', '.join(found)}: give one of them." if (found := adapters_in(folder)) else ""
        )
        raise CheckpointError(
            f"{folder.location} has no {CONFIG} (it holds {inside}). Give a Hugging Face model folder.{several}"
        )
    require_small(config)
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
    index = [weights.index] if weights.index else []
    beside = files_beside(folder, {file.name for file in [*weights.files, *index]})
    counted = [*weights.files, *beside.carried.values(), *index]
    return Checkpoint(
        location=folder.location,
        config=settings,
        tensors=dict(sorted(tensors.items())),
        carried=beside.carried | {CONFIG: config},
        nbytes=sum(file.size for file in counted),
        card=folder.file(CARD),
        notes=weights.notes,
        left=beside.left,
    )


def _has_weights(folder: Folder) -> bool:
    return any(name.endswith(".safetensors") and name != ADAPTER_WEIGHTS for name in folder.entries)


def _merged(adapter: Adapter, folder: Folder, base: Checkpoint) -> Checkpoint:
    """Return a base with an adapter merged into it: the base's files, but for those that lie beside the adapter."""
    merged = merge(adapter, base.tensors, base.config)
    carried, left = dict(base.carried), base.left
    if folder.location != base.location:
        beside = files_beside(folder, ())
        carried, left = {**carried, **beside.carried, CONFIG: carried[CONFIG]}, beside.left
    if merged.config != base.config:
        data = (json.dumps(merged.config, indent=2, sort_keys=True) + "\n").encode()
        carried[CONFIG] = MemoryFile(carried[CONFIG].location, len(data), None, data)
    return Checkpoint(
        location=folder.location,
        config=merged.config,
        tensors=dict(sorted(merged.tensors.items())),
        carried=dict(sorted(carried.items())),
        nbytes=sum(info.nbytes for info in merged.tensors.values()) + sum(file.size for file in carried.values()),
        card=folder.file(CARD),
        notes=(*base.notes, *notes_on(adapter, base.location)),
        left=tuple(name for name in left if name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)),
        adapter=adapter.location,
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
