"""Whether an error says that a device's memory is full. Whoever asks need not have imported torch."""

import sys

_NO_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUSOLVER_STATUS_ALLOC_FAILED")


def is_out_of_device_memory(error: BaseException) -> bool:
    """Return whether a device had too little memory left, which another process may give back.

    Libraries of CUDA that get no workspace say so in errors of their own.
    """
    torch = sys.modules.get("torch")  # where it was never imported, no error is its own
    if isinstance(error, getattr(torch, "OutOfMemoryError", ())):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
