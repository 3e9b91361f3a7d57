"""Three small real model zoos: a base and two or three full fine-tunes of it each, with the recipes that made them.

The first is a Llama. The second is a Seed-OSS: narrower, deeper, with biases and tied embeddings. The third has the
first's base and fine-tunes whose deltas have flat spectra. No default was chosen by the second or the third.

Importing this package is cheap; what needs torch or transformers is in its modules.
"""

import shutil
from pathlib import Path

from impart_core.base.errors import OutputExistsError, unknown_name

FINE_TUNES = ("math", "code", "chat")
_WEIGHTS = {"first": "weights", "second": "weights_second", "flat": "weights_flat"}
_FLAT = ("math", "code")
ZOOS = tuple(_WEIGHTS)


def fine_tunes(zoo: str = "first") -> tuple[str, ...]:
    """Return the names of a zoo's fine-tunes; each is also that of its task.

    Args:
        zoo: "first", "second" or "flat".

    Raises:
        UnknownNameError: no shipped zoo has this name.
    """
    if zoo not in ZOOS:
        raise unknown_name("tiny zoo", zoo, ZOOS)
    return _FLAT if zoo == "flat" else FINE_TUNES


def models(zoo: str = "first") -> tuple[str, ...]:
    """Return the names of a zoo's models: "base", then its fine-tunes; see `fine_tunes`."""
    return ("base", *fine_tunes(zoo))


def path(name: str | None = None, zoo: str = "first") -> Path:
    """Return the folder of one shipped model, or the folder that holds all of its zoo.

    Args:
        name: "base", "math", "code" or "chat"; None for the folder above them.
        zoo: "first", "second" or "flat", whose base is the first's.

    Raises:
        UnknownNameError: no shipped zoo or model has this name.
    """
    if name is not None and name not in models(zoo):
        raise unknown_name("tiny-zoo model", name, models(zoo))
    holder = "first" if zoo == "flat" and name == "base" else zoo
    folder = Path(__file__).parent / _WEIGHTS[holder]
    return folder if name is None else folder / name


def build(out: Path, zoo: str = "first") -> Path:
    """Copy the shipped models of a zoo, each to the folder of its name in `out`.

    Args:
        out: the folder to fill; it must be empty or not exist.
        zoo: "first", "second" or "flat".

    Returns:
        `out`.

    Raises:
        OutputExistsError: `out` is a file, or a folder that holds something.
        UnknownNameError: no shipped zoo has this name.
    """
    require_empty(out)
    folders = [path(name, zoo) for name in models(zoo)]
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
