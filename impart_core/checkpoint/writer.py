"""Writing safetensors: streamed tensor by tensor, the same bytes each time."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from impart_core.base.files import scratch_folder
from impart_core.base.parallel import in_order
from impart_core.checkpoint.carried import is_code
from impart_core.checkpoint.header import DTYPE_NAMES, DTYPES
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.weights import SHARD_INDEX, SINGLE

DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written: its name, safetensors dtype name and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def spec_of(name: str, tensor: torch.Tensor) -> TensorSpec:
    """Return the spec under which a tensor is written."""
    return TensorSpec(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))


def write_safetensors(
    path: Path,
    specs: Iterable[TensorSpec],
    produce: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write one safetensors file, holding one tensor in memory at a time, or as many as `at_once` says.

    Each is written where it belongs as soon as it is there, by the thread that produced it.

    Wider dtypes come first, so that every tensor is aligned to its own item size; then by name.

    Args:
        path: the file to write.
        specs: what it will hold.
        produce: returns the tensor of a name; must agree with its spec.
        metadata: the file's string metadata.
    """
    ordered = sorted(specs, key=lambda spec: (-DTYPES[spec.dtype].itemsize, spec.name))
    header = header_bytes(ordered, metadata)
    ends = list(accumulate((spec.nbytes for spec in ordered), initial=len(header)))

    with path.open("wb", buffering=0) as file:

        def write(piece: tuple[TensorSpec, int]) -> None:
            spec, start = piece
            tensor = produce(spec.name).detach().cpu().contiguous()
            if spec_of(spec.name, tensor) != spec:
                raise ValueError(f"{spec.name} was announced as {spec} but is {tensor.dtype} {tensor.shape}")
            _write_at(file.fileno(), start, tensor_bytes(tensor))

        _write_at(file.fileno(), 0, header)
        for _ in in_order(write, zip(ordered, ends, strict=False)):
            pass


def _write_at(file: int, start: int, data: bytes | memoryview) -> None:
    """Write bytes at a place of a file that is open; the system takes up to 2 GiB at once."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, start)
        rest, start = rest[written:], start + written


def header_bytes(ordered: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Return what a safetensors file begins with: its header's length, and the header.

    Args:
        ordered: what the file holds, in the order in which it lies there.
        metadata: the file's string metadata.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for spec in ordered:
        end = offset + spec.nbytes
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors that are at hand into one safetensors file; see `write_safetensors`."""
    write_safetensors(path, [spec_of(*item) for item in tensors.items()], tensors.__getitem__, metadata or {})


def tensor_bytes(tensor: torch.Tensor) -> bytes | memoryview:
    """Return a contiguous CPU tensor's bytes without copying them."""
    if not tensor.numel():
        return b""
    flat: np.ndarray[tuple[int], np.dtype[np.uint8]] = tensor.reshape(-1).view(torch.uint8).numpy()
    return flat.data


def write_checkpoint(
    folder: Path,
    specs: Sequence[TensorSpec],
    produce: Callable[[str], torch.Tensor],
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> list[Path]:
    """Write a checkpoint's weights into a folder: one file, or shards with an index, as Hugging Face does.

    Returns:
        The weight files that were written.
    """
    metadata = {"format": "pt"}
    shards = list(_shards(specs, max_shard_bytes))
    if len(shards) == 1:
        write_safetensors(folder / SINGLE, shards[0], produce, metadata)
        return [folder / SINGLE]
    files, weight_map = [], {}
    for number, shard in enumerate(shards, 1):
        files.append(folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors")
        write_safetensors(files[-1], shard, produce, metadata)
        weight_map.update({spec.name: files[-1].name for spec in shard})
    index = {"metadata": {"total_size": sum(spec.nbytes for spec in specs)}, "weight_map": weight_map}
    (folder / SHARD_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return files


def _shards(specs: Sequence[TensorSpec], max_bytes: int) -> Iterator[list[TensorSpec]]:
    """Split specs into runs of at most `max_bytes`; a tensor that is larger has a shard of its own."""
    shard: list[TensorSpec] = []
    for spec in specs:
        if shard and sum(s.nbytes for s in shard) + spec.nbytes > max_bytes:
            yield shard
            shard = []
        shard.append(spec)
    yield shard


@contextmanager
def folder_of(checkpoint: Checkpoint) -> Iterator[Path]:
    """Give a folder that transformers loads a checkpoint from: its own, or a scratch copy of one that lies otherwise.

    A copy is made of what is remote, merged, dequantised or was wrapped; it has no code of the checkpoint.
    """
    own = checkpoint.adapter is None and Path(checkpoint.location).is_dir()
    if own and dict(open_checkpoint(checkpoint.location).tensors) == dict(checkpoint.tensors):
        yield Path(checkpoint.location)
        return
    with scratch_folder() as folder:
        specs = [TensorSpec(name, info.dtype, info.shape) for name, info in checkpoint.tensors.items()]
        write_checkpoint(folder, specs, lambda name: read_tensor(checkpoint.tensors[name]))
        write_carried(folder, checkpoint)
        yield folder


def write_carried(folder: Path, checkpoint: Checkpoint, *, with_code: bool = False) -> None:
    """Write the files beside a checkpoint's weights into a folder, its code only where that is asked for."""
    for name, file in checkpoint.carried.items():
        if with_code or not is_code(name):
            (folder / name).parent.mkdir(exist_ok=True)
            file.copy_to(folder / name)
