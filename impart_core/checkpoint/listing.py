"""What lies in a checkpoint's folder, told without opening a file; and the folders that hold models."""

from fnmatch import fnmatchcase

from impart_core.base.canonical import digest_of
from impart_core.base.errors import CheckpointError, NoFolderError, UnreachableError
from impart_core.checkpoint.adapter import ADAPTER_CONFIG
from impart_core.checkpoint.carried import folders_beside
from impart_core.checkpoint.hub import SCHEME, hub_models
from impart_core.checkpoint.index import CONFIG
from impart_core.checkpoint.location import open_folder
from impart_core.checkpoint.source import Folder


def listing_digest(location: str) -> str | None:
    """Return a digest of a checkpoint's files by name, size and stamp: as long as it is the same, so are the files.

    No file is opened; on the Hub, the commit and the blobs' ids are asked for.

    Args:
        location: as in `open_folder`.

    Returns:
        The digest; None where a file has no stamp, so that nothing can be told without reading it.

    Raises:
        CheckpointError: there is no such folder, or it cannot be listed; `UnreachableError` where trying again may
            help.
    """
    folder = open_folder(location)
    files = dict(folder.entries)
    for inner in folders_beside(folder):
        files |= inner
    told = [(name, file.size, file.stamp) for name, file in sorted(files.items()) if file is not None]
    if any(stamp is None for _, _, stamp in told):
        return None
    return digest_of({"location": folder.location, "files": told})


def find_models(pattern: str) -> dict[str, str]:
    """Return the folders of models that a pattern fits, and where each lies, by the folder's name.

    A model is a folder with a configuration, or with that of an adapter.

    Args:
        pattern: a place with `*` in its last part: `/models/*`, `s3://bucket/models/*`, `hf://org/*`.

    Raises:
        CheckpointError: the place cannot be listed.
    """
    head, _, last = pattern.rstrip("/").rpartition("/")
    if head.startswith(SCHEME):
        return {name: f"{head}/{name}" for name in hub_models(head.removeprefix(SCHEME)) if fnmatchcase(name, last)}
    try:
        above = open_folder(head)
    except NoFolderError:
        raise CheckpointError(
            f"The pattern {pattern} looks for models in {head}, which is no folder. Give the folder that holds "
            "the models' folders."
        ) from None
    found = {}
    for name, file in above.entries.items():
        if file is None and fnmatchcase(name, last) and _is_model(above, name):
            found[name] = above.where(name)
    return found


def _is_model(above: Folder, name: str) -> bool:
    try:
        inside = open_folder(above.where(name))
    except UnreachableError:
        raise
    except CheckpointError:
        return False
    return any(inside.file(config) is not None for config in (CONFIG, ADAPTER_CONFIG))
