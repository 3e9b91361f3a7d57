"""How a command fails: a sentence on standard error, an object with `--json`, exit code 2, never a traceback.

What the request or its surroundings are at fault for has a sentence of its own. Of anything else the traceback is
kept in a file, which the sentence names.
"""

import json
import os
import re
import select
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from impart_core.base.errors import ImpartError, IncompleteError, MismatchError
from impart_core.base.text import visible, visible_json, without_secrets
from impart_flows.cli import interrupt

WRONG_REQUEST = 2
_DISTRIBUTION = "impart-zoo"
_LONGEST_REASON = 300
_LOGS_KEPT = 20


def report(error: BaseException, arguments: list[str]) -> int:
    """Tell how a command failed, and return its exit code.

    Args:
        error: what ended the command.
        arguments: the command's arguments.
    """
    if interrupt.came() or isinstance(error, KeyboardInterrupt):
        return report_interrupt(arguments)
    if _reader_is_gone():  # `impart ls | head -1`: nobody is left to tell
        _mute()
        return WRONG_REQUEST
    sentence = str(error) if isinstance(error, ImpartError) else _sentence_of(error, arguments)
    # Only the lines of a list of mismatches are lines of ours.
    lines = sentence.split("\n") if isinstance(error, MismatchError | IncompleteError) else [sentence]
    for line in ["error: " + lines[0], *lines[1:]]:
        print(visible(without_secrets(line)), file=sys.stderr)
    return report_object(type(error).__name__, sentence, arguments)


def report_interrupt(arguments: list[str]) -> int:
    """Say that Ctrl-C ended a command, and return its exit code."""
    print(interrupt.SENTENCE, file=sys.stderr)
    if "--json" in arguments:
        print(interrupt.error_object())
    return interrupt.INTERRUPTED


def report_object(kind: str, message: str, arguments: list[str]) -> int:
    """Print a failure as an object where `--json` asks for it, and return the exit code."""
    if "--json" in arguments:
        failed = {"error": {"type": kind, "message": without_secrets(message)}}
        print(visible_json(json.dumps(failed, ensure_ascii=False)))
    return WRONG_REQUEST


def _sentence_of(error: BaseException, arguments: list[str]) -> str:
    """Return the sentence for an error of a library, or of ours that should not be."""
    verb = next((f"`impart {word}`" for word in arguments if not word.startswith("-")), "`impart`")
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_of(error.name or "")):
        package = (error.name or "").partition(".")[0]
        return (
            f"{verb} needs the package {package!r}, which is not installed. "
            f"Install it with `pip install '{_DISTRIBUTION}[{extra}]'`."
        )
    reason = " ".join(str(error).split())[:_LONGEST_REASON].rstrip(".")
    step = "".join(f" (last step: {note})" for note in getattr(error, "__notes__", ())[:1])
    kept = _keep_traceback(error)
    where = f"the traceback is in {kept}" if kept else "no folder for a file with the traceback can be written"
    return (
        f"{verb} failed{step}: {type(error).__name__}{f': {reason}' if reason else ''}. This is an error that impart "
        f"has no advice for; {where}. What was published is kept."
    )


def _extra_of(module: str) -> str | None:
    """Return the extra that installs a module's package, if one does."""
    wanted = module.partition(".")[0]
    try:
        listed = requires(_DISTRIBUTION) or []
    except PackageNotFoundError:
        return None
    for requirement in listed:
        found = re.match(r"[\w-]+", requirement)
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if found and extra and found[0].replace("-", "_") == wanted:
            return extra[1]
    return None


def _keep_traceback(error: BaseException) -> Path | None:
    """Write an error's traceback where logs go, else where TMPDIR says; of older ones only the last are kept."""
    text = without_secrets("".join(traceback.format_exception(error)))
    for folder in _log_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"impart-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123
                file.write(text)
            for old in sorted(folder.glob("impart-*-*-*.log"))[:-_LOGS_KEPT]:
                old.unlink(missing_ok=True)
            return path
        except OSError:
            continue
    return None


def _log_folders() -> list[Path]:
    import platformdirs

    own = Path(platformdirs.user_log_path("impart", appauthor=False))
    try:
        return [own, Path(tempfile.gettempdir())]
    except OSError:
        return [own]


def _reader_is_gone() -> bool:
    """Return whether whoever read standard output has closed it."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False


def _mute() -> None:
    """Let what is still to be flushed to standard output go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
