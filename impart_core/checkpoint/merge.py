"""Tensors of a base with an adapter merged into them: computed when they are read, in float32, and cast once.

A merged tensor is a file of its own that lies nowhere, so that whoever reads or digests a checkpoint needs not know.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from impart_core.base.canonical import digest_of
from impart_core.base.numerics import one_thread_per_kernel
from impart_core.checkpoint.header import DTYPE_NAMES, TensorInfo
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.source import CHUNK, ComputedFile

_ARITHMETIC = 1  # raised whenever a merge gives other bytes: digests are remembered by it


@dataclass(frozen=True)
class Update(ABC):
    """What an adapter does to one tensor of its base; `value` is its part of the adapter, or the first of several."""

    value: TensorInfo

    @property
    def sources(self) -> tuple[TensorInfo, ...]:
        """The adapter's tensors that it is made of."""
        return (self.value,)

    @abstractmethod
    def merged(self, base: torch.Tensor | None, index: int | None) -> torch.Tensor:
        """Return the merged tensor, or one matrix of a stack, before it is cast.

        Args:
            base: the base's tensor, or its matrix, in float32; None where the base has none.
            index: the number of the matrix; None: the whole tensor.
        """


@dataclass(frozen=True)
class Whole(Update):
    """A tensor that was trained whole (`modules_to_save`, biases) and takes the place of the base's."""

    def merged(self, base: torch.Tensor | None, index: int | None) -> torch.Tensor:  # noqa: ARG002
        """Return the adapter's own tensor; see `Update`."""
        return read_tensor(self.value if index is None else self.value.part(index))


@dataclass(frozen=True)
class Rows(Update):
    """Rows of an embedding that were trained (`trainable_token_indices`); they take the place of the base's."""

    indices: tuple[int, ...]

    def merged(self, base: torch.Tensor | None, index: int | None) -> torch.Tensor:  # noqa: ARG002
        """Return the embedding with these rows in it; see `Update`."""
        assert base is not None
        base[list(self.indices)] = read_tensor(self.value).float()
        return base


@dataclass(frozen=True)
class AddedBias(Update):
    """The bias of a LoRA's second matrix (`lora_bias`), times its scale."""

    scale: float

    def merged(self, base: torch.Tensor | None, index: int | None) -> torch.Tensor:  # noqa: ARG002
        """Return the base's bias plus this one; see `Update`."""
        assert base is not None
        return base.add_(read_tensor(self.value).float() * self.scale)


@dataclass(frozen=True)
class LowRank(Update):
    """LoRA (arXiv 2106.09685): W + s·B·A, and DoRA (arXiv 2402.09353), which rescales each output to a magnitude.

    Attributes:
        value: A, (r, in).
        b: B, (out, r).
        scale: s, alpha/r or, with rank-stabilised LoRA, alpha/√r.
        transposed: whether W is stored as (in, out), as embeddings are and the linear layers of GPT-2.
        magnitude: DoRA's magnitudes, one for each output; None: plain LoRA.
    """

    b: TensorInfo
    scale: float
    transposed: bool
    magnitude: TensorInfo | None = None

    @property
    def sources(self) -> tuple[TensorInfo, ...]:
        """The adapter's tensors that it is made of."""
        return (self.value, self.b, *([self.magnitude] if self.magnitude else []))

    def merged(self, base: torch.Tensor | None, index: int | None) -> torch.Tensor:  # noqa: ARG002
        """Return the merged matrix; see `Update`."""
        assert base is not None
        delta = (read_tensor(self.b).float() @ read_tensor(self.value).float()).mul_(self.scale)
        merged = base.add_(delta.T if self.transposed else delta)
        if self.magnitude is None:
            return merged
        inputs = 0 if self.transposed else 1
        norm = torch.linalg.norm(merged, dim=inputs)
        factor = read_tensor(self.magnitude).float().reshape(-1) / norm
        return merged.mul_(factor.unsqueeze(inputs))


@dataclass(frozen=True)
class ExpertsLowRank(Update):
    """LoRA on experts that are stored as one tensor (`target_parameters`): W_e + s·B_e·A_e.

    Attributes:
        value: A of all experts, (experts·r, in), expert by expert.
        b: B of all experts, (out, r·experts), rank by rank.
        scale: as for `LowRank`.
        transposed: whether W is stored as (experts, in, out).
        experts: their number.
    """

    b: TensorInfo
    scale: float
    transposed: bool
    experts: int

    @property
    def sources(self) -> tuple[TensorInfo, ...]:
        """The adapter's tensors that it is made of."""
        return self.value, self.b

    def merged(self, base: torch.Tensor | None, index: int | None) -> torch.Tensor:
        """Return the merged matrix of one expert; see `Update`."""
        assert base is not None and index is not None
        a = read_tensor(self.value).float().reshape(self.experts, -1, self.value.shape[1])[index]
        b = read_tensor(self.b).float().reshape(self.b.shape[0], -1, self.experts)[:, :, index]
        delta = (b @ a).mul_(self.scale)
        return base.add_(delta.T if self.transposed else delta)


@dataclass(frozen=True)
class MergedFile(ComputedFile):
    """A merged tensor's bytes; a stack of matrices is computed matrix by matrix.

    Attributes:
        base: the base's tensor; None where it has none.
        update: what is merged into it.
        dtype: what the result is cast to.
        shape: its shape.
        key: digest of all that its bytes follow from.
    """

    base: TensorInfo | None
    update: Update
    dtype: torch.dtype
    shape: tuple[int, ...]
    key: str

    @property
    def address(self) -> str:
        """The key: it lies at no place."""
        return self.key

    def chunks(self, start: int, end: int) -> Iterator[memoryview]:
        """Give the bytes from `start` to before `end`, each matrix computed once."""
        stacked = len(self.shape) == 3
        each = self.size // self.shape[0] if stacked and self.size else self.size
        for number in range(start // each, -(-end // each)) if each else ():
            data = self._computed(number if stacked else None)
            low, high = max(start - number * each, 0), min(end - number * each, each)
            for at in range(low, high, CHUNK):
                yield data[at : min(at + CHUNK, high)]

    def _computed(self, index: int | None) -> memoryview:
        base = self.base if self.base is None or index is None else self.base.part(index)
        with one_thread_per_kernel():
            values = None if base is None else read_tensor(base).float()  # memory of its own, which updates write into
            merged = self.update.merged(values, index).to(self.dtype).contiguous()
        return memoryview(merged.reshape(-1).view(torch.uint8).numpy().data)


def merged_tensor(
    name: str, base: TensorInfo | None, update: Update, shape: tuple[int, ...], dtype: torch.dtype
) -> TensorInfo:
    """Return a merged tensor as if it were stored.

    Args:
        name: its name.
        base: the base's tensor; None where it has none.
        update: what is merged into it.
        shape: its shape.
        dtype: what it is cast to.
    """
    sources = [*([base] if base else []), *update.sources]
    read = [
        [info.file.address, info.file.size, info.file.stamp, info.start, info.dtype, *info.shape] for info in sources
    ]
    numbers = {key: value for key, value in vars(update).items() if not isinstance(value, TensorInfo)}
    key = digest_of([_ARITHMETIC, type(update).__name__, numbers, str(dtype), shape, read])
    file = MergedFile(
        location=" + ".join(dict.fromkeys(str(info.file) for info in sources)),
        size=torch.Size(shape).numel() * dtype.itemsize,
        stamp=None if any(info.file.stamp is None for info in sources) else key,
        base=base,
        update=update,
        dtype=dtype,
        shape=shape,
        key=key,
    )
    return TensorInfo(name, DTYPE_NAMES[dtype], shape, file, 0, file.size)
