"""The documents of a calibration source, read one after the other and no further than they are asked for."""

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from impart_core.base.errors import CalibrationError, unknown_name

TINYZOO, HUB = "tinyzoo:", "hub:"
_SEED = 1  # the zoo's models were trained with 0: other items of the same split
_PIECE = 1 << 16  # characters
_FORMS = (
    "Give a text file, a .jsonl file with the field 'text', hub:org/name[:config[:split[:field]]], or "
    "tinyzoo:math, tinyzoo:code or tinyzoo:chat."
)


def check_source(source: str) -> None:
    """Refuse a source that cannot be one, without reading it.

    Raises:
        CalibrationError: it has no form that is known, or there is no such file, or it is empty.
        UnknownNameError: the tiny zoo has no such task.
    """
    if source.startswith(TINYZOO):
        _task(source)
    elif source.startswith(HUB):
        _hub_parts(source)
    else:
        _file(source)


def read_documents(source: str) -> Iterator[str]:
    """Give the texts of a source in their order; a long text file comes in pieces, which end where a line does.

    Raises:
        CalibrationError: the source cannot be read.
        UnknownNameError: the tiny zoo has no such task.
    """
    check_source(source)
    if source.startswith(TINYZOO):
        return _tinyzoo(_task(source))
    if source.startswith(HUB):
        return _hub(*_hub_parts(source))
    path = _file(source)
    return _json_lines(path) if path.suffix == ".jsonl" else _pieces(path)


def is_one_text(source: str) -> bool:
    """Return whether all that `read_documents` gives is one document in pieces."""
    return not source.startswith((TINYZOO, HUB)) and Path(source).suffix != ".jsonl"


def _task(source: str) -> str:
    from impart_core.tinyzoo import FINE_TUNES

    task = source.removeprefix(TINYZOO)
    if task not in FINE_TUNES:
        raise unknown_name("tiny-zoo task", task, FINE_TUNES)
    return task


def _hub_parts(source: str) -> tuple[str, str | None, str, str]:
    """Return a Hub source's data set, configuration, split and field."""
    name, *rest = source.removeprefix(HUB).split(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or len(rest) > 3:
        raise CalibrationError(f"The calibration source {source!r} names no data set of the Hub. {_FORMS}")
    config, split, field = [*rest, *[""] * (3 - len(rest))]
    return name, config or None, split or "train", field or "text"


def _file(source: str) -> Path:
    path = Path(source)
    if not path.exists():
        if re.match(r"\w{2,}:", source):
            raise CalibrationError(f"The calibration source {source!r} has a form that is not known. {_FORMS}")
        raise CalibrationError(f"There is no calibration file {source}. {_FORMS}")
    if not path.is_file():
        raise CalibrationError(f"The calibration source {source} is no file. {_FORMS}")
    if not path.stat().st_size:
        raise CalibrationError(f"The calibration file {source} is empty. Give one with text like the model's own.")
    return path


def _tinyzoo(task: str) -> Iterator[str]:
    from impart_core.tinyzoo.splits import stream

    return (f"{item.prompt} {item.answer}\n" for item in stream(task, "train", _SEED))


def _pieces(path: Path) -> Iterator[str]:
    """Give a file's text in pieces that end with a line, or with a word where a line is very long."""
    rest = ""
    try:
        with path.open(encoding="utf-8") as file:
            while piece := file.read(_PIECE):
                rest += piece
                end = max(rest.rfind("\n"), 0) or max(rest.rfind(" "), 0) or len(rest)
                yield rest[:end]
                rest = rest[end:]
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    yield rest


def _json_lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _field(json.loads(line), "text", f"Line {number} of {path}")
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error


def _hub(name: str, config: str | None, split: str, field: str) -> Iterator[str]:
    from datasets import load_dataset

    try:
        rows = iter(load_dataset(name, config, split=split, streaming=True))
        first = next(rows)
    except StopIteration:
        return
    except Exception as error:  # of the library, the network client or the data set's reader
        raise CalibrationError(
            f"The data set {name} (configuration {config or 'default'}, split {split}) cannot be read from the Hub: "
            f"{error} Check its name and the connection, or give a text file."
        ) from error
    for number, row in enumerate(chain([first], rows), 1):
        yield _field(row, field, f"Row {number} of {name}")


def _field(row: object, field: str, where: str) -> str:
    if not isinstance(row, dict):
        raise CalibrationError(f"{where} is not an object with the field {field!r}. {_FORMS}")
    if not isinstance(row.get(field), str):
        found = ", ".join(map(str, row)) or "none"
        raise CalibrationError(f"{where} has no text in a field {field!r} (its fields: {found}). {_FORMS}")
    return str(row[field])


def _unreadable(path: Path, error: Exception) -> CalibrationError:
    return CalibrationError(f"The calibration file {path} cannot be read: {error}. {_FORMS}")
