"""The deltas of a block, matrix by matrix, read ahead: while one is worked on, the next is being read."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from impart_core.checkpoint.header import TensorInfo
from impart_core.checkpoint.layout import Block
from impart_core.checkpoint.pairing import Pair, Pairs
from impart_core.checkpoint.reader import read_tensor, require_digest
from impart_core.delta.extract import extract_delta

Digests = Mapping[str, str]


@dataclass(frozen=True)
class Loaded:
    """A tensor, or one matrix of a stack, as both checkpoints hold it.

    Attributes:
        pair: which; a matrix of a stack is named `name[index]`.
        tensor: the name of the whole tensor.
        base: the base's values; None where only the fine-tune has it.
        finetuned: the fine-tuned values.
    """

    pair: Pair
    tensor: str
    base: torch.Tensor | None
    finetuned: torch.Tensor

    @property
    def added(self) -> torch.Tensor | None:
        """The rows that the base does not have, where the vocabulary has grown."""
        grown = self.base is not None and self.base.shape != self.finetuned.shape
        return self.finetuned[self.pair.shape[0] :] if grown else None

    def delta(self) -> torch.Tensor:
        """Return ΔW of the rows that both have, float32; errors as in `extract_delta`."""
        assert self.base is not None
        theirs = self.finetuned if self.added is None else self.finetuned[: self.pair.shape[0]]
        return extract_delta(self.base, theirs, self.pair.name)


def load_block(
    pairs: Pairs,
    block: Block,
    digests: tuple[Digests, Digests],
    matrices_of: Callable[[Pair], Iterable[Pair]] = Pair.matrices,
) -> Iterator[Loaded]:
    """Give what a block holds, stacks matrix by matrix, each read while the one before is being worked on.

    Args:
        pairs: the tensors' pairs by name.
        block: which of them.
        digests: the tensors' digests in the base and in the fine-tuned checkpoint; those given are checked.
        matrices_of: what of a tensor is given by itself.

    Raises:
        CheckpointError: a tensor's content is not what its digest says.
    """
    wanted = deque((pairs[name], matrix) for name in block.tensors for matrix in matrices_of(pairs[name]))
    reading: deque[Future[Loaded]] = deque()
    with ThreadPoolExecutor(max_workers=1) as reader:
        while wanted or reading:
            while wanted and len(reading) < 2:
                reading.append(reader.submit(load_matrix, *wanted.popleft(), digests))
            yield reading.popleft().result()  # held by nobody here: a consumer that drops it frees it


def load_matrix(pair: Pair, matrix: Pair, digests: tuple[Digests, Digests]) -> Loaded:
    """Read a tensor, or one of its matrices where it is a stack; see `load_block`."""
    return Loaded(
        pair=matrix,
        tensor=pair.name,
        base=None if pair.base is None or matrix.base is None else _read(pair.base, matrix.base, digests[0]),
        finetuned=_read(pair.finetuned, matrix.finetuned, digests[1]),
    )


def _read(whole: TensorInfo, part: TensorInfo, digests: Digests) -> torch.Tensor:
    """Read a tensor and check it, or read one matrix of a stack, which is checked as a whole with its first."""
    digest = digests.get(whole.name)
    if part is whole:
        return read_tensor(whole, digest)
    if digest is not None and part.start == whole.start:
        require_digest(whole, digest)
    return read_tensor(part)
