"""Files of a checkpoint wherever they lie: read in byte ranges, never as a whole."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impart_core.base.errors import CheckpointError, NoFolderError

CHUNK = 8 << 20
_MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class SourceFile(ABC):
    """A file at some place.

    Attributes:
        location: where it lies, as people write it.
        size: its bytes.
        stamp: changes when its content does; None where the place tells nothing of the kind.
    """

    location: str
    size: int
    stamp: str | None

    def __str__(self) -> str:
        """Return where it lies, for messages."""
        return self.location

    is_local = False  # whether it is a file of this machine

    @property
    def name(self) -> str:
        """What it is called in its folder."""
        return self.location.rpartition("/")[2]

    def in_memory(self) -> "MemoryFile":
        """Return the file with its content read."""
        if isinstance(self, MemoryFile):
            return self
        return MemoryFile(self.location, self.size, self.stamp, bytes(self.read(0, self.size)))

    @property
    def address(self) -> str:
        """Where it lies, written the same from any working directory."""
        return self.location

    @abstractmethod
    def read_into(self, start: int, buffer: memoryview) -> int:
        """Fill a buffer with the bytes from `start` on, and return how many there were.

        Raises:
            CheckpointError: the file cannot be read; `UnreachableError` where trying again may help.
        """

    def on_disk(self, scratch: Path) -> Path:
        """Return it as a file of this machine: itself, or a copy in the scratch folder."""
        self.copy_to(scratch / self.name)
        return scratch / self.name

    def read(self, start: int, end: int) -> bytearray:
        """Return the bytes from `start` to before `end`; errors as in `read_into`."""
        data = bytearray(end - start)
        if self.read_into(start, memoryview(data)) < len(data):
            raise CheckpointError(f"{self} became shorter while it was read. Run again.")
        return data

    def chunks(self, start: int, end: int) -> Iterator[memoryview]:
        """Give the bytes from `start` to before `end` piece by piece, each valid until the next is asked for."""
        buffer = memoryview(bytearray(min(CHUNK, end - start)))
        for at in range(start, end, CHUNK):
            piece = buffer[: min(CHUNK, end - at)]
            if self.read_into(at, piece) < len(piece):
                raise CheckpointError(f"{self} became shorter while it was read. Run again.")
            yield piece

    def copy_to(self, target: Path) -> None:
        """Write its content to a local file."""
        with target.open("wb") as file:
            for piece in self.chunks(0, self.size):
                file.write(piece)


@dataclass(frozen=True)
class MemoryFile(SourceFile):
    """A small file whose content was read already."""

    data: bytes = field(compare=False, repr=False)

    def read_into(self, start: int, buffer: memoryview) -> int:
        """Fill a buffer with the bytes from `start` on, and return how many there were."""
        piece = self.data[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)


@dataclass(frozen=True)
class ComputedFile(SourceFile):
    """Bytes that follow from other files, and are computed in the pieces that `chunks` gives."""

    @abstractmethod
    def chunks(self, start: int, end: int) -> Iterator[memoryview]:
        """Give the bytes from `start` to before `end` piece by piece."""

    def read_into(self, start: int, buffer: memoryview) -> int:
        """Fill a buffer with the bytes from `start` on, and return how many there were."""
        filled = 0
        for piece in self.chunks(start, min(start + len(buffer), self.size)):
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled


@dataclass(frozen=True)
class Folder:
    """A folder at some place: what lies directly in it by name, where a folder in it is None."""

    location: str
    entries: Mapping[str, SourceFile | None]

    def file(self, name: str) -> SourceFile | None:
        """Return the file of this name, or None where there is none."""
        return self.entries.get(name)

    def where(self, name: str) -> str:
        """Return where a file of this name lies, or would lie."""
        return f"{self.location}/{name}"


def no_folder(location: object, found: str) -> NoFolderError:
    """Return the error for a location that is no folder, with what was found there ("is a file")."""
    return NoFolderError(f"The checkpoint folder {location} {found}. Give the folder that holds config.json.")


def read_json(file: SourceFile) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        CheckpointError: it holds something else, or far more than such a file needs.
    """
    require_small(file)
    try:
        value = json.loads(file.read(0, file.size).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a JSON object.")
    return value


def require_small(file: SourceFile) -> None:
    """Refuse a configuration or index of a size that none has."""
    if file.size > _MAX_JSON_BYTES:
        raise CheckpointError(f"{file} has {file.size:,} bytes, far more than such a file needs. Copy it again.")
