"""Arguments of the benches: what is wrong with them is told before any work, in a sentence and with exit code 2."""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

from impart_core.base.files import write_atomically
from impart_core.tinyzoo.splits import SPLIT_ITEMS


def at_least_one(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, math.inf, "a whole number of at least 1")


def item_count(text: str) -> int:
    """Read how many items of a split: no more than it has."""
    return _whole(text, SPLIT_ITEMS, f"a whole number from 1 to {SPLIT_ITEMS}, the items of a split")


def ratio(text: str) -> float:
    """Read a compression ratio."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no ratio. Give a number of at least 1, such as 32.")
    return value


def json_object(text: str) -> str:
    """Read options of a method, and return them as they were written."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}. Give an object, such as {{}}.") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object. Give one, such as {{"p": 2}}.')
    return text


def read_figures(parser: argparse.ArgumentParser, file: Path) -> dict[str, Any]:
    """Return the figures in a JSON file, none where there is no file; end the command where it holds something else."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        parser.error(f"{file} cannot be read as JSON: {error}. Mend or move it, or name another file.")
    if not isinstance(found, dict):
        parser.error(f"{file} holds no JSON object of figures. Move it, or name another file.")
    return found


def require_place(parser: argparse.ArgumentParser, file: Path) -> None:
    """End the command where a file cannot be written."""
    if not file.parent.is_dir():
        parser.error(f"{file} cannot be written: there is no folder {file.parent}. Make it, or name another file.")
    if file.exists() and not file.is_file():
        parser.error(f"{file} cannot be written: it is not a file. Name another.")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        parser.error(f"{file} cannot be written: nothing may be written in {file.parent}. Name another file.")


def write_figures(file: Path, figures: Any) -> None:
    """Write figures as JSON; a command that is killed meanwhile leaves the file as it was."""
    write_atomically(file, (json.dumps(figures, indent=1, sort_keys=True) + "\n").encode())


def _whole(text: str, most: float, expected: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible. Give {expected}.")
    return value
