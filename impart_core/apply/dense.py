"""Reconstruction: base + delta → a Hugging Face checkpoint folder, tensor by tensor."""

from collections.abc import Callable
from pathlib import Path

import torch

from impart_core.apply.reader import open_reader, require_base
from impart_core.artifacts.delta import Delta
from impart_core.base.numerics import one_thread_per_kernel
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.writer import (
    DEFAULT_SHARD_BYTES,
    TensorSpec,
    check_output_folder,
    new_folder,
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
        OutputExistsError: `out` holds files.
    """
    check_output_folder(out, overwrite)
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
