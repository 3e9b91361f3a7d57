"""Tensors of a base with an adapter merged into them: computed when they are read, in float32, and cast once."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial

import torch

from impart_core.base.canonical import digest_of
from impart_core.base.numerics import one_thread_per_kernel
from impart_core.checkpoint.computed import ComputedTensor
from impart_core.checkpoint.header import DTYPE_NAMES, TensorInfo
from impart_core.checkpoint.reader import read_tensor

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


def _piece(base: TensorInfo | None, update: Update, dtype: torch.dtype, stacked: bool, number: int) -> memoryview:
    """Return the bytes of a merged tensor, or of one matrix of a stack."""
    index = number if stacked else None
    part = base if base is None or index is None else base.part(index)
    with one_thread_per_kernel():
        values = None if part is None else read_tensor(part).float()  # memory of its own, which updates write into
        merged = update.merged(values, index).to(dtype).contiguous()
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
    stacked = len(shape) == 3
    file = ComputedTensor(
        location=" + ".join(dict.fromkeys(str(info.file) for info in sources)),
        size=torch.Size(shape).numel() * dtype.itemsize,
        stamp=None if any(info.file.stamp is None for info in sources) else key,
        key=key,
        compute=partial(_piece, base, update, dtype, stacked),
        pieces=shape[0] if stacked else 1,
    )
    return TensorInfo(name, DTYPE_NAMES[dtype], shape, file, 0, file.size)
