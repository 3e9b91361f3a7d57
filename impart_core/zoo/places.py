"""Places in a zoo file: relative ones start at the file's folder, wherever the program runs."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from impart_core.base.errors import ConfigError
from impart_core.checkpoint.hub import SCHEME, parse_hub_id

# Keys whose values may be places or something else: a task's name, the name of a delta.
_PERHAPS = ("tasks", "source", "model", "base_model", "ref", "include_path")


def placed(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the file's content with relative places made absolute, and those that are on the Hub marked so."""
    found = {key: _walk(value, key, folder) for key, value in content.items()}
    if isinstance(content.get("store"), str):
        found["store"] = _under(folder, content["store"]) or content["store"]
    return found


def _walk(value: Any, key: str, folder: Path) -> Any:
    """Return a value with all places in it made absolute; which values are places follows from their keys."""
    if isinstance(value, dict):
        if key == "tasks":
            return {_existing(folder, one): metric for one, metric in value.items()}
        return {one: _walk(inner, one, folder) for one, inner in value.items()}
    if isinstance(value, list):
        return [_walk(one, key, folder) for one in value]
    if not isinstance(value, str):
        return value
    if key in ("base", "finetuned"):
        return _model_place(folder, value)
    if key in ("find", "merge", "search"):
        return _under(folder, value) or value
    return (
        _existing(folder, value) if key in ("tasks", "source", "model", "base_model", "ref", "include_path") else value
    )


def _model_place(folder: Path, value: str) -> str:
    """Return where a model lies: a folder below the file's, else what has the form of a Hub id is one."""
    place = _under(folder, value)
    if place is None or Path(place).exists() or value.startswith((".", "~")) or parse_hub_id(value) is None:
        return place or value
    return f"{SCHEME}{value}"


def _existing(folder: Path, value: Any) -> Any:
    """Return the path of what lies below a folder, or the value as it is."""
    place = _under(folder, value) if isinstance(value, str) and value else None
    return place if place is not None and Path(place).exists() else value


def _under(folder: Path, value: str) -> str | None:
    """Return a path from a folder on; None for a URL.

    Raises:
        ConfigError: no file system has such a path, or it names a user that there is not.
    """
    if "://" in value:
        return None
    try:
        path = folder / Path(value).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.stat()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{value!r:.100} is no place: {error!s:.200}. Give a folder, a Hub id or a URL.") from error
    return str(path)
