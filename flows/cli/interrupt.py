"""Ctrl-C, from the first line on: one sentence and exit code 130, whatever is being imported or done.

A module that is being imported is no place for an exception: libraries swallow it, or make an ImportError of it.
This module imports next to nothing.
"""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
SENTENCE = "Stopped. Finished blocks are kept; run the same command again to go on."
_AGAIN_SECONDS = 0.05
_IMPORTING = "<frozen importlib._bootstrap>"


class _State:
    came = False  # whether Ctrl-C came
    at_work = False  # whether a verb runs, with a server, scratch or pins that it has to take away first
    code: int | None = None  # the exit code, once the command is through


def watch() -> None:
    """Take Ctrl-C from now on, unless whoever started the command had it ignored."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)


def begin() -> None:
    """Note that a verb begins: from here on Ctrl-C is a KeyboardInterrupt, so that it can clean up."""
    _State.at_work = True


def came() -> bool:
    """Return whether Ctrl-C came: then whatever the command ended by is its consequence."""
    return _State.came


def leave_with(code: int) -> None:
    """Note that the command is through: Ctrl-C only cuts its leave-taking short."""
    _State.code = code


def error_object() -> str:
    """Return what `--json` prints of Ctrl-C."""
    return f'{{"error": {{"type": "Interrupted", "message": "{SENTENCE}"}}}}'


def _stop(_number: int, frame: FrameType | None) -> None:
    if _State.code is not None:
        os._exit(_State.code)
    _State.came = True
    if not _State.at_work:
        os.write(2, f"{SENTENCE}\n".encode())
        if "--json" in sys.argv:
            os.write(1, f"{error_object()}\n".encode())
        os._exit(INTERRUPTED)
    if _is_importing(frame):
        _come_again()
    else:
        raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _come_again() -> None:
    """Send the signal to this process once more in a moment, when the import may be through."""
    import _thread
    import threading

    again = threading.Timer(_AGAIN_SECONDS, _thread.interrupt_main)
    again.daemon = True
    again.start()
