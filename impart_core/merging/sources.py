"""The models of a merge, read tensor by tensor: checkpoints, and deltas, of which nothing is rebuilt on disk."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from impart_core.apply.reader import DeltaReader, base_file, open_reader, require_base, require_file
from impart_core.artifacts.block import block_content
from impart_core.artifacts.delta import Delta
from impart_core.checkpoint.carried import stored_name
from impart_core.checkpoint.computed import ComputedTensor
from impart_core.checkpoint.digest import carried_digests, checkpoint_id, tensor_digests
from impart_core.checkpoint.header import DTYPES, TensorInfo
from impart_core.checkpoint.index import CONFIG, Checkpoint
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.source import MemoryFile, SourceFile, read_json
from impart_core.checkpoint.writer import tensor_bytes
from impart_core.merging.blocks import entries_of

# Gives a model's entries in a block, flat; where it is given those of the base, in float32, what it adds to them.
Part = Callable[[slice, torch.Tensor | None], torch.Tensor]


def known_by(checkpoint: Checkpoint, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return what stands for a checkpoint in the recipe of a merge, by the end of a role.

    Args:
        checkpoint: the checkpoint.
        digests: of its tensors.
    """
    return {"": checkpoint_id(digests), "_files": carried_digests(checkpoint)}


@dataclass(frozen=True)
class Source:
    """A model of a merge.

    Attributes:
        label: what the file calls it.
        checkpoint: it, as a checkpoint.
    """

    label: str
    checkpoint: Checkpoint

    @property
    def known(self) -> dict[str, Any]:
        """What stands for it in a recipe, by the end of a role: its tensors by content, and the files beside them."""
        return known_by(self.checkpoint, tensor_digests(self.checkpoint))

    @property
    def artifact(self) -> str | None:
        """The id of the artifact that it is; None where it is none."""
        return None

    def tensor(self, info: TensorInfo) -> torch.Tensor:
        """Return one of its tensors in float32, memory of its own."""
        return read_tensor(info).float()

    def exact(self, info: TensorInfo) -> torch.Tensor:
        """Return one of its tensors in float32 as it is before it is rounded to its dtype, memory of its own."""
        return self.tensor(info)

    def delta(self, info: TensorInfo, base: torch.Tensor) -> torch.Tensor:
        """Return what it adds to a tensor of the base, float32, memory of its own.

        Args:
            info: its tensor, of the base's shape.
            base: the base's tensor.
        """
        return self.tensor(info).sub_(base)

    def part(self, info: TensorInfo, base: torch.Tensor | None) -> Part:  # noqa: ARG002 - a delta needs its shape
        """Return what gives the entries of one of its tensors, or of what it adds to a tensor of the base.

        Args:
            info: its tensor.
            base: the base's tensor as it is stored, of this shape; None: the tensor itself is asked for.
        """
        entries = entries_of(read_tensor(info))

        def part(block: slice, start: torch.Tensor | None) -> torch.Tensor:
            return entries(block) if start is None else entries(block).to(start.device, torch.float32) - start

        return part


@dataclass(frozen=True)
class StageSource(Source):
    """What an earlier stage of the same file gives, or a delta that is planned with and not read yet.

    Attributes:
        key: a digest of all that its bytes follow from.
    """

    key: str

    @property
    def known(self) -> dict[str, Any]:
        """The key."""
        return {"": self.key}


@dataclass(frozen=True)
class DeltaSource(Source):
    """A delta of a store, decoded in float32: what it adds has not been through the fine-tune's dtype."""

    reader: DeltaReader = field(repr=False)
    base: Checkpoint = field(repr=False)

    @property
    def known(self) -> dict[str, Any]:
        """The delta's id."""
        return {"": self.reader.delta.id}

    @property
    def artifact(self) -> str | None:
        """The delta's id."""
        return self.reader.delta.id

    def exact(self, info: TensorInfo) -> torch.Tensor:
        """Return the base's tensor plus the decoded delta; rows that the base has not are as they are stored."""
        base = self.base.tensors.get(self.reader.headers[info.name].base or info.name)
        delta = self.reader.read_delta(info.name, self.base) if base and base.shape[1:] == info.shape[1:] else None
        if base is None or delta is None:
            return self.tensor(info)
        delta.add_(read_tensor(base))
        return delta if base.shape == info.shape else torch.cat([delta, self.tensor(info)[base.shape[0] :]])

    def delta(self, info: TensorInfo, base: torch.Tensor) -> torch.Tensor:
        """Return the decoded delta; arguments as for a checkpoint."""
        header = self.reader.headers[info.name]
        if header.base not in (None, info.name) and self.base.tensors[header.base].shape != base.shape:
            return super().delta(info, base)
        delta = self.reader.read_delta(info.name, self.base)
        if delta is None:
            return torch.zeros(base.shape)
        return delta if delta.shape == base.shape else super().delta(info, base)

    def part(self, info: TensorInfo, base: torch.Tensor | None) -> Part:
        """Return what gives the entries of the decoded delta; arguments as for a checkpoint."""
        if base is None:
            return super().part(info, base)
        entries = entries_of(self.delta(info, base))
        return lambda block, _: entries(block)


@contextmanager
def delta_source(label: str, delta: Delta, base: Checkpoint) -> Iterator[DeltaSource]:
    """Give a delta as a source for as long as the block lasts.

    Raises:
        WrongBaseError: it was made against another base.
        CorruptArtifactError: a file of it is damaged.
    """
    require_base(delta, base)
    with open_reader(delta) as reader:
        yield DeltaSource(label, _checkpoint_of(reader, base), reader, base)


def foreseen_source(label: str, delta: Delta, base: Checkpoint) -> StageSource:
    """Return a delta as a source to plan with: none of its codes is read, and neither can its tensors be.

    Raises:
        CorruptArtifactError: a file beside the weights is damaged.
    """
    tensors = {
        name: TensorInfo(name, entry.dtype, entry.shape, MemoryFile(f"delta {delta.id[:12]}", 0, None, b""), 0, 0)
        for block in delta.blocks
        for name, entry in block_content(block).tensors.items()
    }
    own: dict[str, SourceFile] = {}
    for entry in delta.manifest.files:
        with delta.store.local_file(delta.manifest, entry.name, verified=True) as path:
            own[entry.name] = local_file(path).in_memory()
    return StageSource(label, _stood_for(delta, base, dict(sorted(tensors.items())), own), delta.id)


def _checkpoint_of(reader: DeltaReader, base: Checkpoint) -> Checkpoint:
    """Return the fine-tuned checkpoint that a delta stands for; its tensors are rebuilt when they are read."""
    made = reader.delta.id

    def info(name: str) -> TensorInfo:
        header = reader.headers[name]
        size = torch.Size(header.shape).numel() * DTYPES[header.dtype].itemsize
        file = ComputedTensor(
            location=f"delta {made[:12]}",
            size=size,
            stamp=made,
            key=f"delta:{made}:{name}",
            compute=lambda _: tensor_bytes(reader.rebuild(name, base).contiguous()),
        )
        return TensorInfo(name, header.dtype, header.shape, file, 0, size)

    own = {name: local_file(path) for name, path in reader.files.items()}
    return _stood_for(reader.delta, base, {name: info(name) for name in reader.headers}, own)


def _stood_for(
    delta: Delta, base: Checkpoint, tensors: Mapping[str, TensorInfo], own: Mapping[str, SourceFile]
) -> Checkpoint:
    """Return a delta's checkpoint: its own files by the names that a store gives them, else those of the base.

    Raises:
        CheckpointError: the base lacks a file that it shares with the delta's model.
        WrongBaseError: its file is another than when the delta was made.
    """
    carried: dict[str, SourceFile] = {}
    for name, digest in sorted(delta.content.carried.items()):
        carried[name] = own.get(stored_name(name)) or base_file(name, base)
        require_file(carried[name], name, digest)
    config: Mapping[str, Any] = read_json(carried[CONFIG]) if CONFIG in carried else base.config
    nbytes = sum(one.nbytes for one in tensors.values()) + sum(file.size for file in carried.values())
    return Checkpoint(f"delta {delta.id[:12]}", config, tensors, carried, nbytes)
