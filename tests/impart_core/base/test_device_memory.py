"""A device's memory that is full."""

import pytest
import torch

from impart_core.base.device_memory import is_out_of_device_memory
from impart_core.base.retry import is_transient


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (MemoryError(), False),
    ],
)
def test_lost_memory_of_a_device_is_known_from_whichever_library_says_so(error: Exception, expected: bool) -> None:
    assert is_out_of_device_memory(error) is expected
    assert is_transient(error) is expected
