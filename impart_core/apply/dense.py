"""Reconstruction: base + delta → a Hugging Face checkpoint folder, tensor by tensor."""

import hashlib
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from impart_core.artifacts.delta import Delta
from impart_core.base.errors import CheckpointError, CorruptArtifactError, WrongBaseError
from impart_core.base.numerics import one_thread_per_kernel
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.header import DTYPES
from impart_core.checkpoint.index import CARRIED, Checkpoint
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.writer import (
    DEFAULT_SHARD_BYTES,
    TensorSpec,
    check_output_folder,
    new_folder,
    write_checkpoint,
)
from impart_core.codec.format import ADDED, VALUE, BlockFile, TensorHeader
from impart_core.delta.extract import add_delta
from impart_core.methods.decode import decode_delta, decode_stack, delta_shape

Progress = Callable[[int, int], None]


def require_base(delta: Delta, base: Checkpoint) -> None:
    """Check that a delta was made against this base, by content.

    Raises:
        WrongBaseError: naming the first tensor that differs.
    """
    expected, found = delta.base_digests(), tensor_digests(base)
    differing = sorted(name for name in expected if found.get(name) != expected[name])
    if differing:
        raise WrongBaseError(
            f"The delta {delta.manifest.id[:12]} was made against another base than {base.location}: "
            f"{len(differing)} of {len(expected)} tensors differ, first {differing[0]!r}. "
            "Give the base that it was compressed with."
        )


def reconstruct(
    delta: Delta,
    base: Checkpoint,
    out: Path,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> int:
    """Rebuild the fine-tuned checkpoint; equal inputs give equal bytes.

    Every file of the delta is verified before it is used.

    Args:
        delta: the published delta.
        base: the checkpoint that it was made against.
        out: the folder to make.
        overwrite: whether `out` may be replaced when it holds files.
        max_shard_bytes: largest size of one weights file.
        progress: called with tensors done and their number.

    Returns:
        Bytes of the weights that were written.

    Raises:
        WrongBaseError: the base is another one.
        CorruptArtifactError: a file of the delta is damaged.
        OutputExistsError: `out` holds files.
    """
    check_output_folder(out, overwrite)
    require_base(delta, base)
    for manifest in (delta.manifest, *delta.blocks):
        for entry in manifest.files:
            delta.store.verify_file(manifest, entry)
    with new_folder(out, overwrite) as scratch, ExitStack() as stack, one_thread_per_kernel():
        blocks = delta.open_blocks(stack)
        headers = {name: file.headers[name] for name, file in sorted(blocks.items())}
        specs = [TensorSpec(name, header.dtype, header.shape) for name, header in headers.items()]
        done = 0

        def produce(name: str) -> torch.Tensor:
            nonlocal done
            done += 1
            if progress:
                progress(done, len(specs))
            return rebuild_tensor(name, base, headers[name], blocks[name])

        write_checkpoint(scratch, specs, produce, max_shard_bytes)
        _write_carried(delta, base, scratch)
    return sum(spec.nbytes for spec in specs)


def rebuild_tensor(name: str, base: Checkpoint, header: TensorHeader, block: BlockFile) -> torch.Tensor:
    """Return W_base + ΔŴ in the fine-tuned checkpoint's dtype: added in float32, cast once.

    Raises:
        CorruptArtifactError: the codes do not fit the tensor, in this file or in the base.
    """
    dtype = DTYPES[header.dtype]
    if header.method == VALUE:
        value = block.codes(name).get("value")
        if value is None or (value.shape, value.dtype) != (header.shape, dtype):
            raise CorruptArtifactError(f"{block.path} does not hold {name!r} as its header says.")
        return value
    info = base.tensors.get(header.base or name)
    if header.is_stack and info and info.shape == header.shape:
        stack = torch.empty(header.shape, dtype=dtype)
        for index, delta in enumerate(decode_stack(block, name)):
            stack[index] = add_delta(read_tensor(info.part(index)), delta, dtype)
        return stack
    codes = block.codes(name)
    if info is None or info.shape != _shape_in_base(name, header, codes):  # before memory is taken for the shape
        raise CorruptArtifactError(f"{block.path} holds a delta of {name!r} that does not fit the base's tensor.")
    common = add_delta(read_tensor(info), decode_delta(name, header, codes), dtype)
    return torch.cat([common, codes[ADDED]]) if ADDED in codes else common


def _shape_in_base(name: str, header: TensorHeader, codes: dict[str, torch.Tensor]) -> tuple[int, ...]:
    try:
        return delta_shape(header, codes)
    except (ValueError, IndexError) as error:
        raise CorruptArtifactError(f"The codes of {name!r} do not fit its header: {error}") from error


def _write_carried(delta: Delta, base: Checkpoint, folder: Path) -> None:
    """Write configuration and tokenizer files: the artifact's own, and the base's where they are the same."""
    stored = {entry.name for entry in delta.manifest.files}
    for name, digest in sorted(delta.content.carried.items()):
        if name not in CARRIED:  # weights, or code, of a stranger
            raise CorruptArtifactError(f"The delta {delta.manifest.id[:12]} brings {name!r}, which no delta carries.")
        if name in stored:
            with delta.store.local_file(delta.manifest, name) as path:
                shutil.copyfile(path, folder / name)
        elif name in base.carried:
            base.carried[name].copy_to(folder / name)
        else:
            raise CheckpointError(f"{base.location} has no {name}, which the fine-tuned model shares with its base.")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            kind = CorruptArtifactError if name in stored else WrongBaseError
            raise kind(f"{name} is not the file that this delta was made with. Use the base's original {name}.")
