"""What transformers, tokenizers and lm-eval raise, as sentences: a model is a stranger's, and so is each one's code."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from impart_core.base.device_memory import is_out_of_device_memory
from impart_core.base.errors import ImpartError

_LONGEST_REASON = 300


class Done(BaseException):
    """Ends a stranger's code early because all that was wanted of it is there; no failure, and not caught as one."""


@contextmanager
def explained_failures(doing: str, advice: Callable[[], str], kind: type[ImpartError]) -> Iterator[None]:
    """Turn whatever a library raises in the block into a sentence; lack of memory on a device stays what it is.

    Args:
        doing: what is being done, as a sentence begins: "The model in … cannot be loaded".
        advice: returns what to do about it, as a sentence; asked for only where something went wrong.
        kind: the error to raise.

    Raises:
        ImpartError: of this kind: a library failed.
    """
    try:
        yield
    except (ImpartError, Done, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if is_out_of_device_memory(error):
            raise
        reason = " ".join(str(error).split())[:_LONGEST_REASON].rstrip(".")
        told = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        need = " Install the package that it asks for." if isinstance(error, ImportError) else ""
        raise kind(f"{doing}: {told}.{need} {advice()}".rstrip()) from error
