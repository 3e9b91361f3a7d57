"""Where a checkpoint lies: a folder of this machine, an fsspec URL, or a model on the Hugging Face Hub."""

import re
from pathlib import Path

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.hub import SCHEME, HubId, hub_folder, parse_hub_id
from impart_core.checkpoint.local import local_folder
from impart_core.checkpoint.remote import url_folder
from impart_core.checkpoint.source import Folder

_CACHED = re.compile(r"models--(?P<repo>.+?)/snapshots/")


def is_remote(location: str) -> bool:
    """Return whether a location is a URL, or a Hub id that no folder of this machine has as its name."""
    return "://" in location or _hub_id(location) is not None


def open_folder(location: Path | str) -> Folder:
    """List the folder at a location; a Hub id is pinned to a commit, which the folder's location then names.

    Args:
        location: a folder, `org/name` or `org/name@revision` where no folder has this name (with `hf://` in any
            case), or an fsspec URL.

    Raises:
        CheckpointError: there is no such folder, or it cannot be read.
        UnreachableError: the same, where trying again may help.
        ConfigError: something that reading it needs is not installed or not set well.
    """
    if isinstance(location, Path):
        return local_folder(location)
    if location.startswith(SCHEME):
        named = parse_hub_id(location)
        if named is None:
            raise CheckpointError(f"{location!r} names no model. Give hf://org/name or hf://org/name@revision.")
        return hub_folder(named)
    if "://" in location:
        return url_folder(location)
    wanted = _hub_id(location)
    if wanted is None:
        return local_folder(Path(location))
    try:
        return hub_folder(wanted)
    except CheckpointError as error:
        raise type(error)(f"There is no folder {location}. Read as a Hub id: {error}") from error


def open_subfolder(folder: Folder, name: str) -> Folder:
    """List a folder in a folder that `open_folder` gave; errors as there."""
    if folder.location.startswith(SCHEME):
        model = parse_hub_id(folder.location)
        assert model is not None
        return hub_folder(model, name)
    if "://" in folder.location:
        return url_folder(folder.where(name))
    return local_folder(Path(folder.location) / name)


def _hub_id(location: str) -> HubId | None:
    return None if "://" in location or Path(location).exists() else parse_hub_id(location)


def model_name(place: str) -> str:
    """Return what a model is called by its place, a path or a Hub id: without owner and revision, in small letters."""
    cached = _CACHED.search(place.rstrip("/") + "/")
    named = cached["repo"].replace("--", "/") if cached else place.rstrip("/")
    return named.rpartition("/")[2].partition("@")[0].lower()
