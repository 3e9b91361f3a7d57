"""A device that is none: CPU tensors that say they lie elsewhere, and refuse and count what CUDA refuses and waits for.

`PRETEND` stands for CUDA where there is no GPU. Its results are the CPU's bit for bit, as the CPU computes them. What
code may get wrong on a device is an error here as there: operands on different devices, but for CPU tensors without
dimensions where one number is meant and CPU indices; `numpy` of what lies on the device; a generator of the CPU.
`counting` counts kernels that would be launched, and calls that would wait for the device.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
CPU = torch.device("cpu")


class _Hidden(_DummyBackendModule):
    """Keeps libraries that look for an accelerator of their own accord from finding this one."""

    def is_available(self) -> bool:
        return False


_setup_privateuseone_for_python_backend(NAME, backend_module=_Hidden())
PRETEND = torch.device(NAME, 0)

_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
# Take a CPU number in the place of a tensor without dimensions, though they are not worked out entry by entry.
_TAKE_NUMBERS = {_aten.fill_.Tensor, _aten.masked_fill.Tensor, _aten.masked_fill_.Tensor}
_TAKE_INDICES = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
# Look at a code that says whether they succeeded.
_CHECKED = {_aten._linalg_eigh.default, _aten._linalg_svd.default}
_NO_KERNEL = {
    _aten.empty_like.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
    _aten._unsafe_view.default,
    _aten._fused_sdp_choice.default,
}


@dataclass
class Counts:
    """What a device was asked for.

    Attributes:
        launches: kernels, by the operation's name.
        synchronisations: calls that wait until the device is done, likewise.
    """

    launches: Counter[str] = field(default_factory=Counter)
    synchronisations: Counter[str] = field(default_factory=Counter)


_lock = threading.Lock()
_counting: list[Counts] = []


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what all threads ask of the pretend device inside the block."""
    counts = Counts()
    with _lock:
        _counting.append(counts)
    try:
        yield counts
    finally:
        with _lock:
            _counting.remove(counts)


class PretendTensor(torch.Tensor):
    """A tensor on the pretend device; `inner` is the CPU tensor that it stands for."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "PretendTensor":
        """Say of a CPU tensor that it lies on the device."""
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=PRETEND,
        )
        made.inner = inner
        return made  # type: ignore[no-any-return]

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the memory, for those who compare addresses."""
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        """Return the address, likewise."""
        return self.inner.data_ptr()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, as for every device."""
        raise TypeError(f"can't convert {PRETEND} device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse likewise."""
        return self.numpy(*args, **kwargs)

    def tolist(self) -> Any:
        """Return the values, which are waited for."""
        return self.cpu().tolist()

    def __repr__(self, **kwargs: Any) -> str:
        """Return what it stands for."""
        return f"PretendTensor({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse what CUDA would, count, and let the CPU do it."""
        kwargs = kwargs or {}
        values = [*_leaves(args), *_leaves(kwargs.values())]
        to_cpu = _goes_to_cpu(func, args, kwargs)
        _refuse(func, args, values)
        _count(func, args, to_cpu)
        result = func(*map(_inner, args), **{name: _inner(value) for name, value in kwargs.items()})
        if to_cpu:
            return result
        known = {id(each.inner): each for each in values if isinstance(each, PretendTensor)}
        # A view taken in inference mode is of inference exactly where what it shows is.
        mode = torch.inference_mode(args[0].is_inference()) if func.is_view else nullcontext()
        with mode:
            return _placed(result, known)


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _leaves(value)
        else:
            yield value


def _inner(value: Any) -> Any:
    """Return what the CPU is given in the place of tensors or a device."""
    if isinstance(value, PretendTensor):
        return value.inner
    if isinstance(value, torch.device) and value.type == NAME:
        return CPU
    return [_inner(each) for each in value] if isinstance(value, (list, tuple)) else value


def _placed(result: Any, known: dict[int, PretendTensor]) -> Any:
    """Return tensors as they lie on the device; those that were written into are known already."""
    if isinstance(result, torch.Tensor):
        return known[id(result)] if id(result) in known else PretendTensor(result)
    return type(result)(_placed(each, known) for each in result) if isinstance(result, (list, tuple)) else result


def _goes_to_cpu(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether an operation leaves its result on the CPU."""
    if func is _aten.copy_.default:
        return not isinstance(args[0], PretendTensor)
    device = kwargs.get("device")
    return device is not None and device.type == "cpu"


def _refuse(func: Any, args: Any, values: list[Any]) -> None:
    """Refuse operands on different devices as CUDA does, and generators of another."""
    for value in values:
        if isinstance(value, torch.Generator) and value.device.type != NAME:
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{value.device.type}'")
    if func in _COPIES or not any(_is_cpu(value) for value in values):
        return
    indices = {id(each) for each in _leaves(args[1])} if func in _TAKE_INDICES else set[int]()
    theirs = [value for value in values if _is_cpu(value) and id(value) not in indices]
    first = args[0] if args and isinstance(args[0], torch.Tensor) else None
    takes_numbers = torch.Tag.pointwise in func.tags or func in _TAKE_NUMBERS or func in _TAKE_INDICES
    written = _is_cpu(first) and func._schema.is_mutable
    for value in theirs:
        if written or value.dim() or not takes_numbers or (func in _TAKE_INDICES and value is first):
            raise RuntimeError(f"Expected all tensors to be on the same device, but got {PRETEND} and cpu in {func}")


def _is_cpu(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, PretendTensor)


def _count(func: Any, args: Any, to_cpu: bool) -> None:
    if not _counting:
        return
    launches = not (func.is_view or func in _NO_KERNEL or to_cpu or func is _aten._local_scalar_dense.default)
    waits = to_cpu or func in _CHECKED or torch.Tag.data_dependent_output in func.tags
    if func in _TAKE_INDICES:  # by places that are true, whose number is not known
        waits = any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in _leaves(args[1]))
    elif torch.Tag.dynamic_output_shape in func.tags:
        waits = True
    with _lock:
        for counts in _counting:
            counts.launches[str(func)] += launches
            counts.synchronisations[str(func)] += waits


def _empty(size: Any, **kwargs: Any) -> PretendTensor:
    kwargs["device"] = CPU
    return PretendTensor(torch.empty(size, **kwargs))


def _empty_strided(size: Any, stride: Any, **kwargs: Any) -> PretendTensor:
    kwargs["device"] = CPU
    return PretendTensor(torch.empty_strided(size, stride, **kwargs))


def _copy_from(source: torch.Tensor, target: PretendTensor, non_blocking: bool = False) -> PretendTensor:
    target.inner.copy_(source)
    return target


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attend with the kernel that the CPU takes: for other devices torch would choose one with other rounding."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    settings = {"attn_mask": attn_mask, "scale": scale}
    if torch._fused_sdp_choice(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa):
        kernel = _aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query, key, value, dropout_p, is_causal, **settings)[0]  # type: ignore[no-any-return]
    kernel = _aten._scaled_dot_product_attention_math
    return kernel(  # type: ignore[no-any-return]
        query, key, value, dropout_p=dropout_p, is_causal=is_causal, enable_gqa=enable_gqa, **settings
    )[0]


# All other ways to make a tensor from nothing come down to these, in every thread.
_library = torch.library.Library("aten", "IMPL")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
_library.impl("scaled_dot_product_attention", _attention, "AutogradPrivateUse1")
