"""Device choice, and one thread for each kernel so that results do not depend on how many workers run."""

import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

from impart_core.base.errors import ConfigError, DeviceError

_M_MMAP_THRESHOLD = -3  # malloc.h
_DEVICE = re.compile(r"cpu|cuda(?::([0-9]+))?")
_lock = threading.Lock()
_auto: ContextVar[str] = ContextVar("impart_auto_device", default="auto")
_inside = 0
_threads_before = 1


@contextmanager
def one_thread_per_kernel() -> Iterator[None]:
    """Run CPU kernels on one thread inside the block, in every Python thread that is inside one.

    A sum that is split over more threads rounds differently, so that with the library's default the bytes of
    an artifact would depend on the worker count. Cores are used by working on several blocks at once.
    """
    global _inside, _threads_before
    with _lock:
        if _inside == 0:
            _threads_before = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_threads_before)


def resolve_device(device: str) -> torch.device:
    """Return the torch device for `auto`, `cpu`, `cuda` or `cuda:N`, on which float32 is float32 from then on.

    Products in TF32 or bfloat16, which a program may have asked torch for, keep three digits. They are turned off for
    the process: for CUDA, cuDNN, and the CPU's kernels.

    Raises:
        ConfigError: another word.
        DeviceError: CUDA is asked for and is not available.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    require_device_name(device)
    if device == "auto":
        device = auto_device()
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = _DEVICE.fullmatch(device)
    if device != "cpu" and not torch.cuda.is_available():
        raise DeviceError(
            "Device 'cuda' was asked for, but torch sees no CUDA device here. Use the device cpu (--device cpu)."
        )
    if match and match[1] and int(match[1]) >= torch.cuda.device_count():
        raise DeviceError(f"Device {device!r} was asked for, but there are {torch.cuda.device_count()}.")
    return torch.device(device)


def require_device_name(device: str) -> None:
    """Refuse what is no device's name, wherever it is to be.

    Raises:
        ConfigError: it is none.
    """
    if device != "auto" and not _DEVICE.fullmatch(device):
        raise ConfigError(f"Unknown device {device!r}. Use auto, cpu, cuda or cuda:N.")


def auto_device() -> str:
    """Return what `auto` means here: `auto` itself, where this machine is to choose, or a device."""
    return _auto.get()


@contextmanager
def auto_means(device: str) -> Iterator[None]:
    """Have `auto` mean this device inside the block: one decision for all machines that work on one run."""
    token = _auto.set(device)
    try:
        yield
    finally:
        _auto.reset(token)


def use_all_cores() -> None:
    """Let torch use this process's cores, as it does by itself where nobody tells it otherwise.

    Clusters start their workers with one thread for each kernel; a model's scores differ in their last bits by that.
    """
    with _lock:
        if _inside == 0:
            torch.set_num_threads(default_workers())


def release_memory() -> None:
    """Give freed memory back to the system, where the C library keeps it (glibc).

    Blocks free tensors of many sizes from several threads; without this, resident memory creeps up with the
    number of blocks although no more is in use.
    """
    _call_glibc("malloc_trim", 0)


@cache
def return_large_memory_at_once() -> None:
    """Have large tensors' memory given back to the system as soon as they are freed, where the C library is glibc.

    Left alone it learns to keep blocks of up to 32 MiB, of which more lie idle the more sizes there are: a fifth of
    the peak. From 16 MiB on, what this costs in time is within the noise.
    """
    _call_glibc("mallopt", _M_MMAP_THRESHOLD, 16 << 20)


def _call_glibc(name: str, *arguments: int) -> None:
    """Call a function that other C libraries do not have."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*arguments)


def default_workers() -> int:
    """Return the number of cores this process may use: one block at a time on each."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
