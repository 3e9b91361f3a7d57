"""One open delta: every block's file at hand, verified once."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from impart_core.artifacts.block import block_content
from impart_core.artifacts.delta import Delta
from impart_core.base.errors import CheckpointError, CorruptArtifactError, ImpartError, WrongBaseError
from impart_core.blocks.rebuild import read_delta, rebuild_tensor
from impart_core.checkpoint.carried import is_code, may_be_carried, stored_name
from impart_core.checkpoint.digest import file_digest, tensor_digests
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.reader import digest_of_value
from impart_core.checkpoint.source import SourceFile
from impart_core.codec.format import CODES_FILE, RESIDUAL, BlockFile, TensorHeader


@dataclass(frozen=True)
class DeltaReader:
    """A delta whose files lie on this machine and were held against their digests.

    Attributes:
        delta: the delta.
        headers: how each tensor is stored, by name, names sorted.
        blocks: the file that holds each tensor's codes.
        files: the delta's own files that are carried, by the names that a store gives them.
        expected: digests of the fine-tune's tensors by name, where the delta is lossless.
        over: the lossy delta that its residuals are against, where there is one.
    """

    delta: Delta
    headers: Mapping[str, TensorHeader]
    blocks: Mapping[str, BlockFile]
    files: Mapping[str, Path]
    expected: Mapping[str, str] | None = None
    over: "DeltaReader | None" = None

    def rebuild(self, name: str, base: Checkpoint) -> torch.Tensor:
        """Return a tensor of the fine-tuned checkpoint, in its dtype and shape, on the CPU.

        One of a lossless delta is held against the fine-tune's digest.

        Raises:
            CorruptArtifactError: the codes do not fit the tensor, in this file or in the base; or a lossless delta
                gives another tensor than the fine-tune's.
        """
        header = self.headers[name]
        value = rebuild_tensor(name, base.tensors, header, self.blocks[name], lossy=self._lossy(name, base))
        if self.expected is not None and self.expected.get(name) != digest_of_value(value, header.dtype):
            raise CorruptArtifactError(
                f"{name!r} of the lossless delta {self.delta.id[:12]} does not come back as the fine-tune's tensor: "
                "its digest is another than the recorded one. Compress the fine-tune again with --verify-cache."
            )
        return value

    def read_delta(self, name: str, base: Checkpoint) -> torch.Tensor | None:
        """Return a tensor's delta, float32, in the shape of the base's; None where it is zero; errors as above."""
        return read_delta(name, base.tensors, self.headers[name], self.blocks[name], self._lossy(name, base))

    def _lossy(self, name: str, base: Checkpoint) -> torch.Tensor | None:
        """Return what the lossy delta rebuilds, where the residual to that is stored.

        Raises:
            CorruptArtifactError: there is no such delta, or it rebuilds something else.
        """
        header = self.headers[name]
        if header.method != RESIDUAL:
            return None
        if self.over is None or name not in self.over.headers:
            raise CorruptArtifactError(f"{self.blocks[name].path} holds a residual of {name!r}, but to no lossy delta.")
        below = self.over.headers[name]
        value = rebuild_tensor(name, base.tensors, below, self.over.blocks[name], portable=True)
        if digest_of_value(value, below.dtype) != header.over:
            raise CorruptArtifactError(
                f"{name!r} of the lossy delta {self.over.delta.id[:12]} does not come back as it did when the residual "
                f"in {self.delta.id[:12]} was stored: that delta was made again since, or by another version. "
                "Compress the fine-tune again, losslessly over it."
            )
        return value

    def write_carried(self, base: Checkpoint, folder: Path, *, with_code: bool = False) -> None:
        """Write the files beside the weights: the delta's own, and the base's where they are the same.

        Args:
            base: the base.
            folder: where they are written.
            with_code: whether code that the delta brings is among them; code of the base always is.

        Raises:
            CorruptArtifactError: a file is none that a delta carries, or not the recorded one.
            CheckpointError: the base lacks a file that it shares with the fine-tuned model.
            WrongBaseError: its file is another.
        """
        for name, digest in sorted(self.delta.content.carried.items()):
            if not may_be_carried(name):  # weights of a stranger
                made = self.delta.manifest.id[:12]
                raise CorruptArtifactError(f"The delta {made} brings {name!r}, which no delta carries.")
            own = self.files.get(stored_name(name))
            if own and is_code(name) and not with_code:
                continue
            source = local_file(own) if own else base_file(name, base)
            (folder / name).parent.mkdir(exist_ok=True)
            source.copy_to(folder / name)
            kind = CorruptArtifactError if own else WrongBaseError
            require_file(local_file(folder / name), name, digest, kind)


@contextmanager
def open_reader(delta: Delta) -> Iterator[DeltaReader]:
    """Open a delta for as long as the block lasts; each of its files is fetched, or read, and verified once.

    Raises:
        CorruptArtifactError: a file is missing or damaged; the message names it.
    """
    with ExitStack() as stack:
        files = {
            entry.name: stack.enter_context(delta.store.local_file(delta.manifest, entry.name, verified=True))
            for entry in delta.manifest.files
        }
        blocks: dict[str, BlockFile] = {}
        for manifest in delta.blocks:
            file = BlockFile(stack.enter_context(delta.store.local_file(manifest, CODES_FILE, verified=True)))
            if set(file.headers) != set(block_content(manifest).tensors):
                raise CorruptArtifactError(f"{file.path} does not hold the tensors that its manifest lists.")
            blocks.update(dict.fromkeys(file.headers, file))
        headers = {name: file.headers[name] for name, file in sorted(blocks.items())}
        expected = delta.finetuned_digests() if delta.is_lossless else None
        over = stack.enter_context(open_reader(delta.over)) if delta.over else None
        yield DeltaReader(delta, headers, blocks, files, expected, over)


def base_file(name: str, base: Checkpoint) -> SourceFile:
    """Return a file of the base that a fine-tuned model shares with it.

    Raises:
        CheckpointError: the base has no such file.
    """
    if name not in base.carried:
        raise CheckpointError(f"{base.location} has no {name}, which the fine-tuned model shares with its base.")
    return base.carried[name]


def require_file(file: SourceFile, name: str, digest: str, kind: type[ImpartError] = WrongBaseError) -> None:
    """Check that a file beside the weights is the one that a delta was made with.

    Raises:
        WrongBaseError: it is another; or the given kind of error.
    """
    if file_digest(file) != digest:
        raise kind(f"{name} is not the file that this delta was made with. Use the base's original {name}.")


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
