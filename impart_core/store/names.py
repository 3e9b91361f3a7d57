"""Names for artifacts: a ref is a numbered log of the ids that it pointed to; the highest number is in force.

Each entry is created under a free number or not at all, so that moves are atomic and history is kept.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import ValidationError

from impart_core.base.canonical import canonical_json
from impart_core.base.errors import (
    ArtifactNotFoundError,
    ConfigError,
    CorruptArtifactError,
    ImpartError,
    StoreError,
    unknown_name,
)
from impart_core.base.settings import Frozen
from impart_core.store.manifest import Sha256
from impart_core.store.pins import pin
from impart_core.store.provenance import user_name
from impart_core.store.store import Store

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(@[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
_ID = re.compile(r"[0-9a-f]{6,64}")
_SHORT_ID = re.compile(r"[0-9a-f]{1,5}")
_ENTRY = re.compile(r"([0-9]{8}|[1-9][0-9]{8,17})\.json")  # eight digits, and more where they are needed
_ROLLBACK = re.compile(r"rollback to ([0-9]{1,18})")
_ATTEMPTS = 100
_LARGEST = 64 << 10


class RefEntry(Frozen):
    """One move of a ref.

    Attributes:
        id: the artifact id that it points to since then.
        moved: when (UTC, ISO 8601).
        by: which user moved it.
        why: by what, in a few words (`compress`, `tag`, `rollback to 2`).
    """

    id: Sha256
    moved: str
    by: str = ""
    why: str = ""


class Move(RefEntry):
    """A move and its number in the ref's log, from 1 on."""

    number: int


def require_ref_name(name: str) -> str:
    """Return a name that may be given to an artifact.

    Raises:
        ConfigError: it holds other characters, or looks like an id.
    """
    if not _NAME.fullmatch(name) or _ID.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name an artifact. Use letters, digits, '.', '_' and '-', optionally '@' and a label "
            "(wizardmath-13b@prod), and not just hexadecimal digits."
        )
    return name


def set_ref(store: Store, name: str, artifact_id: str, why: str = "", by: str | None = None) -> Move:
    """Point a name to an artifact and return the move in force; nothing is written when it points there already.

    Args:
        store: the store.
        name: which name.
        artifact_id: where it is to point.
        why: by what, in a few words.
        by: who moves it; None: the user that runs this process.

    Raises:
        StoreError: other writers kept moving the same name.
    """
    require_ref_name(name)
    for _ in range(_ATTEMPTS):
        numbers = _numbers(store, name)
        if numbers and (current := _move(store, name, numbers[-1])).id == artifact_id:
            return current
        made = _try_move(store, name, (numbers[-1] if numbers else 0) + 1, artifact_id, (why, by))
        if made:
            return made
    raise StoreError(f"The name {name!r} is being moved by others all the time. Try again.")


def get_ref(store: Store, name: str) -> str | None:
    """Return the id that a name points to, or None where the name is not taken."""
    numbers = _numbers(store, name)
    return _move(store, name, numbers[-1]).id if numbers else None


def all_refs(store: Store) -> dict[str, str]:
    """Return every name and the id that it points to; of its moves only the last is read."""
    last = {name: numbers[-1:] for name, numbers in _all_numbers(store).items()}
    return {name: moves[-1].id for name, moves in _read_moves(store, last).items()}


def names_by_id(store: Store) -> dict[str, tuple[str, ...]]:
    """Return the names that point to an artifact, sorted, by its id."""
    names: dict[str, tuple[str, ...]] = {}
    for name, artifact_id in all_refs(store).items():
        names[artifact_id] = (*names.get(artifact_id, ()), name)
    return names


def all_moves(store: Store) -> dict[str, list[Move]]:
    """Return every name's moves, oldest first, with few requests.

    Raises:
        CorruptArtifactError: one of them is damaged.
    """
    return _read_moves(store, _all_numbers(store))


def _all_numbers(store: Store) -> dict[str, list[int]]:
    """Return the numbers of every name's moves, rising, from one listing."""
    found: dict[str, list[int]] = {}
    for path in sorted(store.objects.find("refs")):
        _, name, file = path.split("/", 2)
        entry = _ENTRY.fullmatch(file)
        if _NAME.fullmatch(name) and entry:
            found.setdefault(name, []).append(int(entry[1]))
    return {name: sorted(numbers) for name, numbers in found.items()}


def _read_moves(store: Store, numbers: dict[str, list[int]]) -> dict[str, list[Move]]:
    wanted = {_path(name, number): (name, number) for name, own in numbers.items() for number in own}
    moves: dict[str, list[Move]] = {}
    for path, data in store.objects.read_many(wanted, _LARGEST).items():
        name, number = wanted[path]
        moves.setdefault(name, []).append(_parse(store, path, number, data))
    return dict(sorted(moves.items()))


def resolve(store: Store, ref: str) -> str:
    """Return the artifact id of a name, a full id, or a unique beginning of an id (six digits or more).

    Raises:
        ArtifactNotFoundError: nothing matches.
        UnknownNameError: nothing matches, but names exist: with the nearest.
        ConfigError: the beginning fits several ids.
    """
    named = get_ref(store, ref)
    if named:
        return named
    if _ID.fullmatch(ref):
        fitting = store.ids_from(ref)
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise ConfigError(f"{ref!r} is the beginning of {len(fitting)} artifact ids. Give more digits.")
    if _SHORT_ID.fullmatch(ref) and store.ids_from(ref):
        raise ArtifactNotFoundError(f"{ref!r} is too short for the beginning of an id. Give at least six digits.")
    names = store.objects.names("refs")
    if names:
        raise unknown_name("artifact", ref, names)
    store.require_there()
    raise ArtifactNotFoundError(f"There is no artifact {ref!r} in the store {store.url}, and it holds no names.")


def is_artifact(store: Store, ref: str) -> bool:
    """Return whether a text is a name or an id, or the beginning of one id, that `resolve` takes."""
    try:
        resolve(store, ref)
    except ImpartError:
        return False
    return True


def tag(store: Store, name: str, artifact_id: str) -> Move:
    """Point a name to an artifact that exists, and return the move in force.

    Raises:
        ArtifactNotFoundError: there is no such artifact.
        CorruptArtifactError: its manifest is damaged.
        ConfigError: the name may not be given to an artifact.
    """
    require_ref_name(name)
    with pin(store, [artifact_id]):
        return set_ref(store, name, store.manifest(artifact_id).id, why="tag")


def history(store: Store, name: str) -> tuple[Move, ...]:
    """Return every move of a name, oldest first; the last one is in force.

    Raises:
        ArtifactNotFoundError: the name is not taken, and the store holds no names.
        UnknownNameError: the name is not taken, but others are: with the nearest.
        CorruptArtifactError: a move is damaged.
    """
    return tuple(_move(store, name, number) for number in _taken(store, name))


def rollback(store: Store, name: str, to: int | None = None) -> Move:
    """Point a name to the artifact of an earlier move by a new move, and return the one in force.

    History is never rewritten, so that a rollback can be rolled back.

    Args:
        store: the store.
        name: which name.
        to: number of the move to go back to; None for the one before that in force, or before that which the last
            rollback went back to, so that each further rollback goes further back.

    Raises:
        ConfigError: there is no such move, or none further back.
        ArtifactNotFoundError: the name is not taken, or the artifact that it would point to is gone.
        StoreError: someone else moved the name meanwhile: what is before it now is another question.
    """
    numbers = _taken(store, name)
    if to is None and len(numbers) == 1:
        raise ConfigError(f"{name!r} was moved once only: there is nothing to roll back to.")
    wanted = _further_back(name, history(store, name)) if to is None else to
    if wanted not in numbers:
        raise ConfigError(f"{name!r} has no move {to}. Its moves are {numbers[0]} to {numbers[-1]}.")
    target = _move(store, name, wanted)
    with pin(store, [target.id]):
        return _go_back(store, name, _move(store, name, numbers[-1]), target)


def _further_back(name: str, moves: Sequence[Move]) -> int:
    """Return the number of the move before the one that is in force, rollbacks taken for what they went back to.

    A move that was rolled back is not come back to: moves 1, 2, `rollback to 1`, 4 go back to 1 again.
    """
    by_number = {move.number: move for move in moves}

    def origin(move: Move) -> Move:
        while (found := _ROLLBACK.fullmatch(move.why)) and int(found[1]) < move.number and int(found[1]) in by_number:
            move = by_number[int(found[1])]
        return move

    first = origin(moves[-1]).number
    earlier = [move for move in moves if move.number < first]
    if not earlier:
        raise ConfigError(
            f"{name!r} is back at its first move: there is nothing further back. `impart history {name}` lists its "
            "moves; give one with --to."
        )
    return origin(earlier[-1]).number


def _go_back(store: Store, name: str, current: Move, target: Move) -> Move:
    wanted = target.number
    try:
        store.manifest(target.id)
    except ArtifactNotFoundError as error:
        raise ArtifactNotFoundError(
            f"{name!r} cannot go back to move {wanted}: its artifact {target.id[:12]} is no longer in the store "
            f"{store.url}. `impart history {name}` lists the other moves; compressing again makes it anew."
        ) from error
    if current.id == target.id:
        return current
    made = _try_move(store, name, current.number + 1, target.id, (f"rollback to {wanted}", None))
    if made is None:
        raise StoreError(
            f"{name!r} was moved by someone else at this moment, and was not rolled back. "
            f"See where it points now (`impart history {name}`), and try again."
        )
    return made


def _taken(store: Store, name: str) -> list[int]:
    """Return the numbers of a name's moves; errors as in `history`."""
    numbers = _numbers(store, name)
    if not numbers:
        names = store.objects.names("refs")
        if names:
            raise unknown_name("name", name, names)
        store.require_there()
        raise ArtifactNotFoundError(f"The store {store.url} holds no names, so not {name!r} either.")
    return numbers


def _try_move(store: Store, name: str, number: int, artifact_id: str, reason: tuple[str, str | None]) -> Move | None:
    """Write a move under its number, None where another writer was first."""
    why, by = reason
    moved = datetime.now(UTC).isoformat(timespec="seconds")
    entry = RefEntry(id=artifact_id, moved=moved, by=user_name() if by is None else by, why=why)
    free = store.objects.create(_path(name, number), canonical_json(entry.model_dump()))
    return Move(number=number, **entry.model_dump()) if free else None


def _path(name: str, number: int) -> str:
    return f"refs/{name}/{number:08d}.json"


def _numbers(store: Store, name: str) -> list[int]:
    """Return the numbers of a name's moves, rising; what cannot be a name has none."""
    files = store.objects.names(f"refs/{name}") if _NAME.fullmatch(name) else []
    found = map(_ENTRY.fullmatch, files)
    return sorted(int(entry[1]) for entry in found if entry)


def _move(store: Store, name: str, number: int) -> Move:
    path = _path(name, number)
    return _parse(store, path, number, store.read(path) or b"")


def _parse(store: Store, path: str, number: int, data: bytes) -> Move:
    try:
        return Move(number=number, **RefEntry.model_validate_json(data).model_dump())
    except ValidationError as error:
        raise CorruptArtifactError(f"{store.url}/{path} is not a ref. Delete it to fall back one move.") from error
