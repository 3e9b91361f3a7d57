"""Which files hold a checkpoint's weights: those that transformers loads, by its own order.

That is `_get_resolved_checkpoint_files` of transformers: what the configuration names (`transformers_weights`), then
`model.safetensors`, then the shards of `model.safetensors.index.json`, then pickles, which are not read here. Other
files (`consolidated.safetensors`, `model.fp16.safetensors`) it does not load unless told to.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.source import Folder, SourceFile, read_json

SINGLE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
NAMED = "transformers_weights"  # the configuration's key that names the weights' file
_SUFFIX, _INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # torch's, which transformers puts first
_VARIANT = re.compile(r"model(\.safetensors\.index)?\.(?P<variant>[\w-]+?)(-\d{5}-of-\d{5})?\.(safetensors|json)")
_PICKLES = (".bin", ".pt", ".pth")
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Weights:
    """The files that hold a checkpoint's weights.

    Attributes:
        files: the safetensors files, names sorted.
        index: the shard index that names them, where one does.
        listed: the tensors that the index lists.
        notes: sentences on what was passed over.
    """

    files: tuple[SourceFile, ...]
    index: SourceFile | None = None
    listed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def find_weights(folder: Folder, config: Mapping[str, Any]) -> Weights:
    """Return the files that transformers would load from a folder.

    Args:
        folder: the checkpoint's.
        config: its parsed config.json.

    Raises:
        CheckpointError: there are none, they are not safetensors, shards are missing, or it cannot be told which they
            are.
    """
    distributed = [name for name in folder.entries if _DISTRIBUTED.fullmatch(name)]
    if distributed:
        raise CheckpointError(
            f"{folder.location} holds a distributed checkpoint ({distributed[0]}), whose tensors are in pieces. Load "
            "the model and save it anew with `save_pretrained`."
        )
    named = config.get(NAMED)
    if named is not None:
        return _named(folder, named)
    single, index = folder.file(SINGLE), folder.file(SHARD_INDEX)
    if single is not None:
        notes = () if index is None else (_passed_over(folder),)
        return Weights((single,), notes=notes)
    if index is not None:
        return _sharded(folder, index)
    return _unusual(folder)


def _passed_over(folder: Folder) -> str:
    return (
        f"{folder.location} holds both {SINGLE} and {SHARD_INDEX}. {SINGLE} is taken, as transformers does; the index "
        "and its shards are ignored. Remove those that are left over from another save."
    )


def _named(folder: Folder, named: object) -> Weights:
    if not isinstance(named, str) or not named.endswith((_SUFFIX, _INDEX_SUFFIX)):
        raise CheckpointError(
            f"The configuration of {folder.location} names {named!r:.200} as its weights ({NAMED}), which is neither "
            f"a file *{_SUFFIX} nor an index *{_INDEX_SUFFIX}. Correct its config.json."
        )
    file = folder.file(named)
    if file is None:
        raise CheckpointError(
            f"The configuration of {folder.location} names {named!r:.200} as its weights ({NAMED}), which is not in "
            "its folder. Copy that file there, or correct its config.json."
        )
    return _sharded(folder, file) if named.endswith(_INDEX_SUFFIX) else Weights((file,))


def _sharded(folder: Folder, index: SourceFile) -> Weights:
    """Return all shards that an index names; transformers loads every tensor in them."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map. Save the checkpoint again.")
    files = []
    for name in sorted({str(file) for file in weight_map.values()}):
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which is not a file of its own folder.")
        file = folder.file(name)
        if file is None:
            raise CheckpointError(f"{index} names {name}, which is missing. Copy the shard there.")
        files.append(file)
    return Weights(tuple(files), index, frozenset(map(str, weight_map)))


def _unusual(folder: Folder) -> Weights:
    """Return all shards of a set that lacks its index; whatever else there is gets a sentence of its own."""
    names = sorted(name for name, file in folder.entries.items() if file is not None)
    pickled = [name for name in names if name.endswith(_PICKLES) and not name.startswith("training_args")]
    if any(name.startswith("pytorch_model") for name in pickled):
        raise _not_safetensors(folder, f"transformers loads {pickled[0]}, which is a pickle")
    shards = [found for name in names if (found := _SHARD.fullmatch(name))]
    if shards:
        return _complete(folder, shards)
    if _ADAPTER in names:
        raise CheckpointError(
            f"{folder.location} holds an adapter ({_ADAPTER}) and no model. Merge it into its base with "
            "`merge_and_unload()`, save the merged model, and give that."
        )
    tensors = [name for name in names if name.endswith(_SUFFIX)]
    variant = next((found for name in names if (found := _VARIANT.fullmatch(name))), None)
    if variant:
        raise CheckpointError(
            f"{folder.location} holds no {SINGLE}, only the variant {variant['variant']!r} ({variant[0]}). Load the "
            f"model with `variant={variant['variant']!r}`, save it anew, and give that."
        )
    if tensors:
        raise CheckpointError(
            f"{folder.location} holds neither {SINGLE} nor {SHARD_INDEX}; {', '.join(tensors[:4])} is not what "
            f"transformers loads. If all weights are in one file in its format, rename that to {SINGLE}."
        )
    raise _not_safetensors(folder, f"only {pickled[0]}, which is a pickle" if pickled else "no weights at all")


def _complete(folder: Folder, shards: list[re.Match[str]]) -> Weights:
    sets = {(shard["stem"], int(shard["count"])) for shard in shards}
    if len(sets) > 1:
        listed = ", ".join(f"{stem} of {count}" for stem, count in sorted(sets))
        raise CheckpointError(
            f"{folder.location} holds shards of several saves ({listed}) and no {SHARD_INDEX} that says which are "
            "its weights. Keep those of one save."
        )
    (stem, count) = next(iter(sets))
    there = {int(shard["number"]) for shard in shards}
    missing = [number for number in range(1, count + 1) if number not in there]
    if missing:
        raise CheckpointError(
            f"{folder.location} holds {len(there)} of {count} shards; {stem}-{missing[0]:05d}-of-{count:05d}{_SUFFIX} "
            f"is missing, and so is {SHARD_INDEX}. Copy all of the checkpoint."
        )
    files = [file for shard in shards if (file := folder.file(shard[0])) is not None]
    note = f"{folder.location} has no {SHARD_INDEX}. All {count} shards are there and are taken; transformers needs it."
    return Weights(tuple(files), notes=(note,))


def _not_safetensors(folder: Folder, what: str) -> CheckpointError:
    return CheckpointError(
        f"{folder.location} holds no safetensors that are its weights ({what}). Checkpoints are read as safetensors "
        "only: load the model and save it with `save_pretrained(..., safe_serialization=True)`."
    )
