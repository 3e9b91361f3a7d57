"""The log of a name: numbered moves, each written once under a free number; the highest number is in force.

refs/<name>/<number>.json         the move
refs/<name>/<number>.copy.json    the same bytes, written after it

A move carries its own name, its number and a seal, so that an altered byte and swapped files are noticed. Its copy
tells that there was such a move, and where it led, when the move is lost or damaged; so the loss of the last one is
noticed, too. It lies in the same folder, so that no further listing is needed. A writer that is killed between the two
leaves a move without a copy, which is in force like any other. Moves of early versions have no copy, and carry no name,
number or seal; they are read as they are.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from pydantic import ValidationError

from impart_core.base.canonical import canonical_json, digest_of
from impart_core.base.errors import CorruptArtifactError, StoreError
from impart_core.base.settings import Frozen
from impart_core.store.manifest import Sha256
from impart_core.store.store import Store
from impart_core.store.who import recorded_who

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(@[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
_ENTRY = re.compile(r"([0-9]{8}|[1-9][0-9]{8,17})(\.copy)?\.json")
_COPY = ".copy.json"
_LAST = 10**18 - 1
_LARGEST = 64 << 10


class Move(Frozen):
    """One move of a name.

    Attributes:
        number: its place in the name's log, from 1 on.
        id: the artifact id that the name points to since then.
        moved: when (UTC, ISO 8601).
        by: who moved it, where that is recorded: a user or a CI job.
        why: by what, in a few words (`compress`, `tag`, `rollback to 2`).
    """

    number: int
    id: Sha256
    moved: str
    by: str = ""
    why: str = ""


class RefEntry(Frozen):
    """A move as it is written; `id` to `why` and `number` are as in `Move`.

    Attributes:
        name: of which name.
        lost: numbers of earlier moves that could not be read any more and were given up with this one.
        seal: the digest of all the rest; empty, as name and number, in what early versions wrote.
    """

    id: Sha256
    moved: str
    by: str = ""
    why: str = ""
    name: str = ""
    number: int = 0
    lost: tuple[int, ...] = ()
    seal: str = ""

    def sealed(self) -> "RefEntry":
        """Return it with its seal."""
        return self.model_copy(update={"seal": self._digest()})

    def fault(self, name: str, number: int, data: bytes) -> str | None:
        """Return what is wrong with it as it was found under a name and number, if anything."""
        if not (self.name or self.number or self.lost or self.seal):
            return None
        if self.seal != self._digest() or self.to_json() != data:
            return "was altered after it was written"
        return None if (self.name, self.number) == (name, number) else f"is move {self.number} of {self.name!r:.200}"

    def to_json(self) -> bytes:
        """Return it as canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    def move(self, number: int) -> Move:
        """Return the move that it tells of."""
        return Move(number=number, id=self.id, moved=self.moved, by=self.by, why=self.why)

    def _digest(self) -> str:
        return digest_of(self.model_dump(mode="json", exclude={"seal"}))


@dataclass(frozen=True)
class Log:
    """The moves of a name.

    Attributes:
        name: the name.
        numbers: of all its moves that there are, rising.
        moves: those that can be read, oldest first.
        damaged: by number, what is wrong with those that cannot and that no later move has given up.
        copied: of these, the ones whose copy can be read, oldest first.
    """

    name: str
    numbers: tuple[int, ...]
    moves: tuple[Move, ...]
    damaged: Mapping[int, str]
    copied: tuple[Move, ...] = ()

    @property
    def current(self) -> Move | None:
        """The move in force; None where there is none.

        Raises:
            CorruptArtifactError: it is damaged.
        """
        if self.numbers and self.numbers[-1] in self.damaged:
            raise CorruptArtifactError(self.trouble())
        return self.moves[-1] if self.moves else None

    def trouble(self) -> str:
        """Return a sentence on what is damaged, and what mends it."""
        last = max((*self.moves, *self.copied), key=lambda move: move.number, default=None)
        ref = last.id[:12] if last else "REF"
        readable = f"The last move that can be read is {last.number}, to {ref}: " if last else ""
        if last in self.copied:
            readable = f"The copy of move {last.number} says that it led to {ref}: "
        return (
            f"{'; '.join(self.damaged[number] for number in sorted(self.damaged))}. {readable}"
            f"`impart tag {ref} {self.name}` gives up what is damaged and goes on from there; "
            f"`impart untag {self.name}` removes the name."
        )


def numbers_of(store: Store, name: str) -> list[int]:
    """Return the numbers of a name's moves, rising, the last perhaps of a lost one; what cannot be a name has none."""
    return _numbers(files_of(store, name))


def files_of(store: Store, name: str) -> list[str]:
    """Return the paths of a name's moves and of their copies; what cannot be a name has none."""
    files = store.objects.names(f"refs/{name}") if NAME.fullmatch(name) else []
    return [f"refs/{name}/{file}" for file in files if _ENTRY.fullmatch(file)]


def is_copy(path: str) -> bool:
    """Return whether a path of `files_of` is that of a copy."""
    return path.endswith(_COPY)


def number_of(path: str) -> int:
    """Return the number of the move that a path of `files_of` is of."""
    return int(path.rpartition("/")[2].partition(".")[0])


def _numbers(paths: Iterable[str]) -> list[int]:
    """Return the numbers of moves, rising, with the highest that a copy has; others are missed as gaps."""
    copies, moves = (
        sorted({number_of(path) for path in paths if is_copy(path) is of_copy}) for of_copy in (True, False)
    )
    return sorted({*moves, *copies[-1:]})


def all_numbers(store: Store) -> dict[str, list[int]]:
    """Return the numbers of every name's moves, rising, from one listing."""
    found: dict[str, list[str]] = {}
    for path in store.objects.find("refs"):
        _, name, file = path.split("/", 2)
        if NAME.fullmatch(name) and _ENTRY.fullmatch(file):
            found.setdefault(name, []).append(path)
    return {name: _numbers(found[name]) for name in sorted(found)}


def read_log(store: Store, name: str) -> Log:
    """Return every move of a name."""
    numbers = {name: numbers_of(store, name)}
    return read_logs(store, numbers).get(name) or Log(name, (), (), {})


def current_move(store: Store, name: str, numbers: list[int]) -> Move | None:
    """Return the move in force of a name whose numbers are known; None where there is none.

    Raises:
        CorruptArtifactError: it is damaged.
    """
    if not numbers:
        return None
    log = read_logs(store, {name: numbers[-1:]}).get(name)
    # The whole log tells what the last one that can be read is.
    return (log if log and not log.damaged else read_log(store, name)).current


def read_logs(store: Store, numbers: Mapping[str, Iterable[int]]) -> dict[str, Log]:
    """Return the given moves of names, with few requests; of a name that is gone meanwhile nothing is returned."""
    wanted = {path_of(name, number): (name, number) for name, own in numbers.items() for number in own}
    data = store.objects.read_many(wanted, _LARGEST)
    logs = {}
    for name, own in numbers.items():
        found = {
            number: data.get(path_of(name, number))
            for number in own
            if path_of(name, number) in data or store.objects.size(_copy_of(name, number)) is not None
        }
        if found:
            logs[name] = _log_of(store, name, found)
    return dict(sorted(logs.items()))


def _log_of(store: Store, name: str, found: Mapping[int, bytes | None]) -> Log:
    moves, damaged, given_up = list[Move](), _gaps(store, name, sorted(found)), set[int]()
    for number, data in sorted(found.items()):
        entry = _read(name, number, data)
        if isinstance(entry, str):
            damaged[number] = f"{_place(store, name, number)} {entry}"
        else:
            moves.append(entry.move(number))
            given_up.update(entry.lost)
    left = {number: fault for number, fault in damaged.items() if number not in given_up}
    copies = {number: _read(name, number, store.objects.read(_copy_of(name, number), _LARGEST)) for number in left}
    copied = tuple(copy.move(number) for number, copy in sorted(copies.items()) if isinstance(copy, RefEntry))
    return Log(name, tuple(sorted(found)), tuple(moves), left, copied)


def _read(name: str, number: int, data: bytes | None) -> RefEntry | str:
    """Return a move as it was written, or what is wrong with it."""
    if data is None:
        return "is missing"
    try:
        entry = RefEntry.model_validate_json(data)
    except ValidationError:
        return "is not a ref"
    return entry.fault(name, number, data) or entry


def _gaps(store: Store, name: str, numbers: list[int]) -> dict[int, str]:
    """Return where moves are missing between others, by the first number of each gap."""
    return {
        before + 1: f"{_place(store, name, before + 1)} is missing"
        + (f", as is all before move {after}" if after > before + 2 else "")
        for before, after in pairwise(numbers)
        if after > before + 1
    }


def new_move(number: int, artifact_id: str, why: str, by: str | None = None) -> Move:
    """Return a move of now; `by` is who makes it, None whom `who.recorded_who` names."""
    moved = datetime.now(UTC).isoformat(timespec="seconds")
    return Move(number=number, id=artifact_id, moved=moved, by=recorded_who() if by is None else by, why=why)


def write_move(store: Store, name: str, move: Move, lost: Iterable[int] = ()) -> Move | None:
    """Write a move under its number, then its copy; return it, or None where another writer was first.

    Args:
        store: where.
        name: of which name.
        move: what is written.
        lost: numbers of earlier moves that cannot be read and are given up.

    Raises:
        StoreError: there is no such number: somebody has forged the one before.
    """
    if move.number > _LAST:
        before = move.number - 1
        raise StoreError(f"{name!r} has move {before} and cannot be moved on. `impart untag {name}` removes it.")
    entry = RefEntry(**move.model_dump(), name=name, lost=tuple(sorted(lost))).sealed()
    path, copy = path_of(name, move.number), _copy_of(name, move.number)
    if not store.objects.create(path, entry.to_json()):
        return None
    store.objects.create(copy, entry.to_json())
    if store.objects.size(path) is None:  # the name was removed meanwhile, and a copy would say that the move was lost
        store.objects.delete([copy])
    return move


def path_of(name: str, number: int) -> str:
    """Return where a move lies in the store."""
    return f"refs/{name}/{number:08d}.json"


def _copy_of(name: str, number: int) -> str:
    return path_of(name, number).removesuffix(".json") + _COPY


def _place(store: Store, name: str, number: int) -> str:
    return f"{store.url.rstrip('/')}/{path_of(name, number)}"
