"""A small real model zoo: one base and three full fine-tunes of it, with the recipe that made them.

Importing this package is cheap; what needs torch or transformers is in its modules.
"""

import shutil
from pathlib import Path

from impart_core.base.errors import OutputExistsError, unknown_name

FINE_TUNES = ("math", "code", "chat")
MODELS = ("base", *FINE_TUNES)
_WEIGHTS = Path(__file__).parent / "weights"


def path(name: str | None = None) -> Path:
    """Return the folder of one shipped model, or the folder that holds all of them.

    Args:
        name: "base", "math", "code" or "chat"; None for the folder above them.

    Raises:
        UnknownNameError: no shipped model has this name.
    """
    if name is None:
        return _WEIGHTS
    if name not in MODELS:
        raise unknown_name("tiny-zoo model", name, MODELS)
    return _WEIGHTS / name


def build(out: Path) -> Path:
    """Copy the shipped models to `out`/base, `out`/math, `out`/code and `out`/chat.

    Args:
        out: the folder to fill; it must be empty or not exist.

    Returns:
        `out`.

    Raises:
        OutputExistsError: `out` is a file, or a folder that holds something.
    """
    require_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        shutil.copytree(path(name), out / name)
    return out


def require_empty(out: Path) -> None:
    """Refuse an output folder that cannot be filled without touching what is there.

    Raises:
        OutputExistsError: `out` is a file, or a folder that holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputExistsError(f"{out} already exists and is not an empty folder. Name another one, or empty it.")
