"""Reconstruction: base + delta → a Hugging Face checkpoint folder, tensor by tensor."""

from collections.abc import Callable
from pathlib import Path

import torch

from impart_core.apply.reader import open_reader, require_base
from impart_core.artifacts.delta import Delta
from impart_core.base.new_folder import check_output_folder, new_folder, require_apart
from impart_core.base.numerics import one_thread_per_kernel
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.writer import (
    DEFAULT_SHARD_BYTES,
    TensorSpec,
    write_checkpoint,
)

Progress = Callable[[int, int], None]


def reconstruct(
    delta: Delta,
    base: Checkpoint,
    out: Path,
    *,
    overwrite: bool = False,
    with_code: bool = False,
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
        with_code: whether Python code that the delta brings is written too; see `Delta.code`.
        max_shard_bytes: largest size of one weights file.
        progress: called with tensors done and their number.

    Returns:
        Bytes of the weights that were written.

    Raises:
        WrongBaseError: the base is another one.
        CorruptArtifactError: a file of the delta is damaged.
        OutputExistsError: `out` holds files; or it is, holds or lies in the store or the base.
    """
    check_output_folder(out, overwrite)
    require_apart(out, _to_keep(delta, base))
    require_base(delta, base)
    with open_reader(delta) as reader, new_folder(out, overwrite) as scratch, one_thread_per_kernel():
        specs = [TensorSpec(name, header.dtype, header.shape) for name, header in reader.headers.items()]
        done = 0

        def produce(name: str) -> torch.Tensor:
            nonlocal done
            done += 1
            if progress:
                progress(done, len(specs))
            return reader.rebuild(name, base)

        write_checkpoint(scratch, specs, produce, max_shard_bytes)
        reader.write_carried(base, scratch, with_code=with_code)
    return sum(spec.nbytes for spec in specs)


def _to_keep(delta: Delta, base: Checkpoint) -> dict[str, Path]:
    """Return what lies on this machine and must not be replaced."""
    store = delta.store.objects.local("artifacts")
    found = {"the base": None if "://" in base.location else Path(base.location), "the store": store and store.parent}
    return {what: place for what, place in found.items() if place}
