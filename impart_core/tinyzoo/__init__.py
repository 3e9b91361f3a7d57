"""Two small real model zoos: one base and three full fine-tunes of it each, with the recipes that made them.

The first is a Llama. The second is a Seed-OSS: narrower, deeper, with biases and tied embeddings, and no default was
chosen by it.

Importing this package is cheap; what needs torch or transformers is in its modules.
"""

import shutil
from pathlib import Path

from impart_core.base.errors import OutputExistsError, unknown_name

FINE_TUNES = ("math", "code", "chat")
MODELS = ("base", *FINE_TUNES)
_WEIGHTS = {"first": "weights", "second": "weights_second"}
ZOOS = tuple(_WEIGHTS)


def path(name: str | None = None, zoo: str = "first") -> Path:
    """Return the folder of one shipped model, or the folder that holds all of its zoo.

    Args:
        name: "base", "math", "code" or "chat"; None for the folder above them.
        zoo: "first" or "second".

    Raises:
        UnknownNameError: no shipped zoo or model has this name.
    """
    if zoo not in ZOOS:
        raise unknown_name("tiny zoo", zoo, ZOOS)
    folder = Path(__file__).parent / _WEIGHTS[zoo]
    if name is None:
        return folder
    if name not in MODELS:
        raise unknown_name("tiny-zoo model", name, MODELS)
    return folder / name


def build(out: Path, zoo: str = "first") -> Path:
    """Copy the shipped models to `out`/base, `out`/math, `out`/code and `out`/chat.

    Args:
        out: the folder to fill; it must be empty or not exist.
        zoo: "first" or "second".

    Returns:
        `out`.

    Raises:
        OutputExistsError: `out` is a file, or a folder that holds something.
        UnknownNameError: no shipped zoo has this name.
    """
    require_empty(out)
    folders = [path(name, zoo) for name in MODELS]
    out.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        shutil.copytree(folder, out / folder.name)
    return out


def require_empty(out: Path) -> None:
    """Refuse an output folder that cannot be filled without touching what is there.

    Raises:
        OutputExistsError: `out` is a file, or a folder that holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputExistsError(f"{out} already exists and is not an empty folder. Name another one, or empty it.")
