"""What a checkpoint is, by content: a digest for each tensor, remembered between runs.

Digests are remembered by each file's address, size and stamp (inode and times, ETag, blob id), so that a cached run
reads no weights, wherever they lie.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import platformdirs

from impart_core.base.canonical import digest_of
from impart_core.base.files import write_atomically
from impart_core.checkpoint.header import TensorInfo
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.reader import tensor_digest
from impart_core.checkpoint.source import SourceFile


def cache_folder() -> Path:
    """Return where digests are remembered: IMPART_CACHE, else the user's cache folder."""
    return Path(os.environ.get("IMPART_CACHE") or platformdirs.user_cache_dir("impart"))


def tensor_digests(checkpoint: Checkpoint, *, refresh: bool = False) -> dict[str, str]:
    """Return the SHA-256 of every tensor by name; reads only files that changed since they were last read.

    Args:
        checkpoint: the checkpoint.
        refresh: whether all files are read, whatever is remembered of them.
    """
    by_file: dict[SourceFile, list[TensorInfo]] = {}
    for info in checkpoint.tensors.values():
        by_file.setdefault(info.file, []).append(info)
    digests: dict[str, str] = {}
    for file, infos in by_file.items():
        digests.update(_file_digests(file, infos, refresh))
    return dict(sorted(digests.items()))


def checkpoint_id(digests: Mapping[str, str]) -> str:
    """Return the id of a checkpoint from its tensors' digests: the same for any sharding and any folder."""
    return digest_of(dict(digests))


def carried_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the SHA-256 of each carried file (configuration, tokenizer, generation) by name."""
    return {name: file_digest(file) for name, file in checkpoint.carried.items()}


def file_digest(file: SourceFile) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    for piece in file.chunks(0, file.size):
        digest.update(piece)
    return digest.hexdigest()


def _file_digests(file: SourceFile, infos: Iterable[TensorInfo], refresh: bool) -> dict[str, str]:
    """Return the digests of a file's tensors; of those that a checkpoint uses, where an adapter replaces others."""
    wanted = {info.name: info for info in infos}
    if file.stamp is None:
        return {name: tensor_digest(info) for name, info in wanted.items()}
    known = {} if refresh else _remembered(file)
    missing = {name: tensor_digest(info) for name, info in wanted.items() if name not in known}
    if missing:
        _remember(file, known | missing)
    return {name: digest for name, digest in (known | missing).items() if name in wanted}


def remember_digest(info: TensorInfo, digest: str) -> None:
    """Remember the digest of a tensor that is a file of its own, as computed ones are: it is not read for it again."""
    _remember(info.file, {info.name: digest})


def _record_of(file: SourceFile) -> tuple[Path, list[object]]:
    """Return where a file's digests are remembered, and what tells that the file is still the same."""
    record = cache_folder() / "digests" / f"{hashlib.sha256(file.address.encode()).hexdigest()}.json"
    return record, [file.address, file.size, file.stamp]


def _remember(file: SourceFile, digests: Mapping[str, str]) -> None:
    record, stamp = _record_of(file)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps({"stamp": stamp, "digests": dict(digests)}).encode())


def _remembered(file: SourceFile) -> dict[str, str]:
    """Return the digests of a file's tensors that were read before; none where it has changed since."""
    record, stamp = _record_of(file)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        remembered = json.loads(record.read_text())
        if remembered["stamp"] == stamp:
            return {str(name): str(digest) for name, digest in remembered["digests"].items()}
    return {}
