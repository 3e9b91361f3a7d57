"""Threads and devices."""

import threading

import pytest
import torch

from impart_core.base.errors import ConfigError, DeviceError
from impart_core.base.numerics import (
    default_workers,
    one_thread_per_kernel,
    release_memory,
    resolve_device,
)

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")


pytestmark = pytest.mark.usefixtures("two_threads")


def test_kernels_run_on_one_thread_inside_and_on_as_many_as_before_outside() -> None:
    with one_thread_per_kernel():
        assert torch.get_num_threads() == 1
        with one_thread_per_kernel():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_an_error_inside_restores_the_threads() -> None:
    with pytest.raises(ValueError, match="stop"), one_thread_per_kernel():
        raise ValueError("stop")
    assert torch.get_num_threads() == 2


def test_every_python_thread_inside_uses_one() -> None:
    seen: list[int] = []

    def work() -> None:
        with one_thread_per_kernel():
            seen.append(torch.get_num_threads())

    with one_thread_per_kernel():
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_num_threads() == 1
    assert seen == [1, 1, 1]


def test_the_processor_is_always_there_and_auto_finds_something() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    "device", ["tpu", "", "cpu:", "cpu:0", "cuda:", "cuda:x", "cuda:²", "cuda:0:1", "CPU", "cpu\n"]
)
def test_a_word_that_is_no_device_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="Use auto, cpu, cuda or cuda:N"):
        resolve_device(device)


@needs_no_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_a_device_that_is_not_here_is_refused_with_the_one_that_is(device: str) -> None:
    with pytest.raises(DeviceError, match="Use the device cpu"):
        resolve_device(device)


def test_at_least_one_worker() -> None:
    assert default_workers() >= 1


def test_releasing_memory_loses_nothing() -> None:
    kept = torch.arange(100_000)
    release_memory()
    assert torch.equal(kept, torch.arange(100_000))


def test_float32_is_float32_on_whatever_device_is_set_up() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    resolve_device("cpu")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
