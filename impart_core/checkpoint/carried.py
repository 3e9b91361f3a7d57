"""Files beside the weights that a model needs: carried with its delta, and put back when it is rebuilt.

They are told by their names, at the folder's top or one folder down: configurations, vocabularies, templates, and the
model's own Python code, which is carried but never run. Nothing else is, so that a delta of a stranger brings no
weights, no pickles, and no adapter that transformers would load by itself.
"""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from impart_core.base.errors import CheckpointError, UnreachableError
from impart_core.checkpoint.local import LocalFile, leads_outside
from impart_core.checkpoint.location import open_subfolder
from impart_core.checkpoint.source import Folder, SourceFile

LARGEST_CARRIED = 64 << 20  # bytes of one file; the largest tokenizer.json of public models has about 35 MB
CARRIED_NAME = r"^(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,79}/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,79}$"
_JOIN = "--"  # stands for the slash where a store names a file
_CODE = ".py"
_KINDS = re.compile(r"\.(json|jinja|txt|model(\.v\d+)?|spm|bpe|codes|vocab|tiktoken|py)$")
# Maps of weights that are written anew, adapters that are merged already, and what training leaves.
_NEVER = re.compile(r"\.index\.json$|^adapter_config\.json$|^trainer_state\.json$|^\w+_results\.json$")
# A dense layer after a sentence encoder (sentence-transformers): the only weights that are not the model's own.
_MODULE = re.compile(r"\d+_\w+/model\.safetensors")
_LEFTOVERS = re.compile(r"checkpoint-\d+|global_step\d+|runs|logs|wandb|onnx|openvino|original|__pycache__|\..*")
_MOST_FILES = 64  # in a folder of a model; one that has more holds data
_MOST_FOLDERS = 32  # to look into; each is a request where the checkpoint is not on this machine


@dataclass(frozen=True)
class Beside:
    """Files beside a checkpoint's weights: those that are carried by name, and the names of those left behind."""

    carried: dict[str, SourceFile]
    left: tuple[str, ...]


def may_be_carried(name: str) -> bool:
    """Return whether a delta may bring a file of this name, such as `vocab.txt` or `1_Pooling/config.json`."""
    if not re.fullmatch(CARRIED_NAME, name) or _JOIN in name:
        return False
    own = name.rpartition("/")[2]
    return bool(_MODULE.fullmatch(name) or (_KINDS.search(own) and not _NEVER.search(own)))


def is_code(name: str) -> bool:
    """Return whether a carried file is code, which runs where somebody loads the model with `trust_remote_code`."""
    return name.endswith(_CODE)


def stored_name(name: str) -> str:
    """Return what a store calls a carried file: its name, with `--` for a slash."""
    return name.replace("/", _JOIN)


def files_beside(folder: Folder, weights: Collection[str]) -> Beside:
    """Return what lies beside a checkpoint's weights.

    Args:
        folder: the checkpoint's folder.
        weights: names of the files that its tensors are read from, and of their index.

    Raises:
        CheckpointError: a file that would be carried is a link that leads out of the folder.
        UnreachableError: a folder in it cannot be listed now.
    """
    carried: dict[str, SourceFile] = {}
    left: list[str] = []
    looked_into = _folders_to_look_into(folder)
    files = dict(folder.entries)
    for name in looked_into:
        inner = _files_in(folder, name)
        files.update(inner if len(inner) <= _MOST_FILES else {f"{name}/": None})
    for name, file in files.items():
        if file is None:
            left += [f"{name.rstrip('/')}/"] if name not in looked_into else []
        elif may_be_carried(name) and file.size <= LARGEST_CARRIED:
            _require_inside(file, folder)
            carried[name] = file
        elif name not in weights:
            left.append(name)
    return Beside(dict(sorted(carried.items())), tuple(name for name in left if not name.startswith(".")))


def folders_beside(folder: Folder) -> Iterator[dict[str, SourceFile | None]]:
    """Give the files, by their names in the checkpoint's folder, of each folder in it that may hold carried ones.

    Raises:
        UnreachableError: one cannot be listed now.
    """
    for name in _folders_to_look_into(folder):
        yield _files_in(folder, name)


def _folders_to_look_into(folder: Folder) -> list[str]:
    folders = [name for name, file in folder.entries.items() if file is None]
    return [name for name in folders if not _LEFTOVERS.fullmatch(name)][:_MOST_FOLDERS]


def _files_in(folder: Folder, name: str) -> dict[str, SourceFile | None]:
    try:
        inner = open_subfolder(folder, name)
    except UnreachableError:
        raise
    except CheckpointError:  # a link that leads nowhere, or a folder that may not be read: nothing to carry
        return {}
    return {f"{name}/{entry}": file for entry, file in inner.entries.items()}


def _require_inside(file: SourceFile, folder: Folder) -> None:
    """Refuse a link to a file of somebody else: `vocab.txt` might be a key, which the delta would publish."""
    if isinstance(file, LocalFile) and leads_outside(file.path, Path(folder.location)):
        raise CheckpointError(
            f"{file} is a link to {file.path.resolve()}, outside of its checkpoint. If that file belongs to the model, "
            "copy it there in place of the link."
        )


def code_elsewhere(folder: Path) -> tuple[str, ...]:
    """Return the Hub's repositories whose code the configurations in a folder name (`auto_map`), sorted.

    It is fetched and run where somebody loads the folder with `trust_remote_code`.
    """
    found: set[str] = set()
    for path in sorted(folder.glob("*config.json")):
        try:
            settings = json.loads(path.read_bytes())
            named = json.dumps(settings.get("auto_map"))
        except (ValueError, RecursionError, AttributeError):  # no configuration that transformers would read
            continue
        found.update(re.findall(r'"([^"]+?)--[^"]+"', named))
    return tuple(sorted(found))
