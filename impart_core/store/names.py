"""Names for artifacts: moved atomically, their history kept; see `refs` for how it is written."""

import logging
import re
from collections.abc import Iterable

from impart_core.base.errors import (
    ArtifactNotFoundError,
    ConfigError,
    CorruptArtifactError,
    ImpartError,
    StoreError,
    unknown_name,
)
from impart_core.store.manifest import Manifest
from impart_core.store.pins import pin
from impart_core.store.refs import (
    NAME,
    Log,
    Move,
    all_numbers,
    current_move,
    files_of,
    is_copy,
    new_move,
    number_of,
    numbers_of,
    path_of,
    read_log,
    read_logs,
    write_move,
)
from impart_core.store.store import Store

logger = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{6,64}")
_SHORT_ID = re.compile(r"[0-9a-f]{1,5}")
_ROLLBACK = re.compile(r"rollback to ([0-9]{1,18})")
_ATTEMPTS = 100


def require_ref_name(name: str) -> str:
    """Return a name that may be given to an artifact.

    Raises:
        ConfigError: it holds other characters, or looks like an id.
    """
    if not NAME.fullmatch(name) or _ID.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name an artifact. Use letters, digits, '.', '_' and '-', optionally '@' and a label "
            "(wizardmath-13b@prod), and not just hexadecimal digits."
        )
    return name


def require_movable(store: Store, name: str) -> None:
    """Check before any work that a name can be given at its end.

    Raises:
        ConfigError: it may not be given to an artifact.
        CorruptArtifactError: its last move is damaged or lost.
    """
    get_ref(store, require_ref_name(name))


def set_ref(store: Store, name: str, artifact_id: str, why: str = "", by: str | None = None) -> Move:
    """Point a name to an artifact and return the move in force; nothing is written when it points there already.

    Args:
        store: the store.
        name: which name.
        artifact_id: where it is to point. Whether that is there is the caller's to know; see `require_whole`.
        why: by what, in a few words.
        by: who moves it; None: whom `who.recorded_who` names.

    Raises:
        CorruptArtifactError: the name's last move is damaged.
        StoreError: other writers kept moving the same name.
    """
    require_ref_name(name)
    for _ in range(_ATTEMPTS):
        numbers = numbers_of(store, name)
        current = current_move(store, name, numbers)
        if current and current.id == artifact_id:
            return current
        made = write_move(store, name, new_move((numbers[-1] if numbers else 0) + 1, artifact_id, why, by))
        if made:
            return made
    raise _moved_all_the_time(name)


def get_ref(store: Store, name: str) -> str | None:
    """Return the id that a name points to, or None where the name is not taken.

    Raises:
        CorruptArtifactError: its last move is damaged.
    """
    current = current_move(store, name, numbers_of(store, name))
    return current.id if current else None


def all_refs(store: Store) -> dict[str, str]:
    """Return every name and the id that it points to; of its moves only the last is read.

    A name whose last move is damaged is left out, with a warning that says what mends it.
    """
    numbers = all_numbers(store)
    found = {}
    for name, log in read_logs(store, {name: own[-1:] for name, own in numbers.items()}).items():
        if log.damaged:
            logger.warning("The name %r cannot be read: %s", name, read_log(store, name).trouble())
        else:
            found[name] = log.moves[-1].id
    return found


def names_by_id(store: Store) -> dict[str, tuple[str, ...]]:
    """Return the names that point to an artifact, sorted, by its id; damaged ones as in `all_refs`."""
    names: dict[str, tuple[str, ...]] = {}
    for name, artifact_id in all_refs(store).items():
        names[artifact_id] = (*names.get(artifact_id, ()), name)
    return names


def all_logs(store: Store) -> dict[str, Log]:
    """Return every name's moves, with few requests."""
    return read_logs(store, all_numbers(store))


def resolve(store: Store, ref: str) -> str:
    """Return the artifact id of a name, a full id, or a unique beginning of an id (six digits or more).

    Raises:
        ArtifactNotFoundError: nothing matches.
        CorruptArtifactError: the name's last move is damaged.
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


def require_whole(store: Store, artifact_id: str, read: Iterable[Manifest] = ()) -> Manifest:
    """Return an artifact's manifest if it is whole with all that it consists of: manifests there, files of their size.

    Args:
        store: the store.
        artifact_id: which.
        read: manifests that were read a moment ago, of which only the files are looked for.

    Raises:
        ArtifactNotFoundError: there is no such artifact.
        CorruptArtifactError: something of it, or of a part, is missing or damaged.
    """
    known = {manifest.id: manifest for manifest in read}
    top = store.examine(artifact_id, known=known.get(artifact_id))
    manifest = top.manifest or store.manifest(artifact_id)
    ids = (pointer.id for pointer in manifest.content.pointers())
    parts = ((part, store.examine(part, known=known.get(part))) for part in ids)
    for part, found in ((artifact_id, top), *parts):
        if found.manifest is None:
            lost = found.fault or f"Its part {part[:12]} is not in the store {store.url}."
            raise CorruptArtifactError(
                f"The {manifest.content.kind} {artifact_id[:12]} is not whole: {lost} "
                "Compress with the same settings again to make it whole."
            )
    return manifest


def tag(store: Store, name: str, artifact_id: str) -> Move:
    """Point a name to a whole artifact, and return the move in force.

    Moves of the name that cannot be read any more are given up: the new move says so, and they stop nothing then.

    Raises:
        ArtifactNotFoundError: there is no such artifact.
        CorruptArtifactError: something of it is damaged or missing.
        ConfigError: the name may not be given to an artifact.
        StoreError: other writers kept moving the same name.
    """
    require_ref_name(name)
    with pin(store, [artifact_id]):
        require_whole(store, artifact_id)
        for _ in range(_ATTEMPTS):
            log = read_log(store, name)
            if log.moves and not log.damaged and log.moves[-1].id == artifact_id:
                return log.moves[-1]
            past = f"tag, past damaged moves: {', '.join(map(str, sorted(log.damaged)))}" if log.damaged else "tag"
            number = (log.numbers[-1] if log.numbers else 0) + 1
            made = write_move(store, name, new_move(number, artifact_id, past), lost=log.damaged)
            if made:
                return made
    raise _moved_all_the_time(name)


def untag(store: Store, name: str) -> int:
    """Remove a name with all its moves, readable or not, and return how many these were. Artifacts stay.

    Copies go first, then the oldest moves, so that the name points to what it pointed to until it is gone.

    Raises:
        ArtifactNotFoundError: the name is not taken, and the store holds no names.
        UnknownNameError: the name is not taken, but others are: with the nearest.
        StoreError: someone else moved the name meanwhile: it stays, without the moves before.
    """
    numbers = _taken(store, name)
    copies = [path for path in files_of(store, name) if is_copy(path)]
    for some in (copies, [path_of(name, number) for number in numbers[:-1]], [path_of(name, numbers[-1])]):
        store.objects.delete(some)
    left = files_of(store, name)
    if moves := sorted(number_of(path) for path in left if not is_copy(path)):
        raise StoreError(
            f"{name!r} was moved by someone else at this moment (move {moves[-1]}), and stays. "
            f"See where it points now (`impart history {name}`), and try again."
        )
    store.objects.delete(left)  # copies of moves that were deleted above before their writers came to these
    return len(numbers)


def history(store: Store, name: str) -> tuple[Move, ...]:
    """Return every move of a name, oldest first; the last one is in force.

    Earlier moves that are damaged are left out, with a warning that says what mends the name.

    Raises:
        ArtifactNotFoundError: the name is not taken, and the store holds no names.
        UnknownNameError: the name is not taken, but others are: with the nearest.
        CorruptArtifactError: the last move is damaged.
    """
    log = _taken_log(store, name)
    if log.damaged:
        logger.warning("%s", log.trouble())
    return log.moves


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
        CorruptArtifactError: a move that matters is damaged, or that artifact is not whole.
        StoreError: someone else moved the name meanwhile: what is before it now is another question.
    """
    log = _taken_log(store, name)
    numbers, moves = log.numbers, {move.number: move for move in log.moves}
    if to is None and len(numbers) == 1:
        raise ConfigError(f"{name!r} was moved once only: there is nothing to roll back to.")
    wanted = _further_back(log) if to is None else to
    if wanted not in numbers:
        raise ConfigError(f"{name!r} has no move {to}. Its moves are {numbers[0]} to {numbers[-1]}.")
    if wanted not in moves:
        raise CorruptArtifactError(
            f"Move {wanted} of {name!r} is damaged, so that it is not known where it led. "
            f"`impart history {name}` lists the others; give one of these with --to."
        )
    with pin(store, [moves[wanted].id]):
        return _go_back(store, name, log.moves[-1], moves[wanted])


def _further_back(log: Log) -> int:
    """Return the number of the move before the one that is in force, rollbacks taken for what they went back to.

    A move that was rolled back is not come back to: moves 1, 2, `rollback to 1`, 4 go back to 1 again.
    """
    by_number = {move.number: move for move in log.moves}

    def origin(move: Move) -> Move:
        while (found := _ROLLBACK.fullmatch(move.why)) and int(found[1]) < move.number and int(found[1]) in by_number:
            move = by_number[int(found[1])]
        return move

    first = origin(log.moves[-1]).number
    earlier = [number for number in log.numbers if number < first]
    if not earlier:
        raise ConfigError(
            f"{log.name!r} is back at its first move: there is nothing further back. `impart history {log.name}` lists "
            "its moves; give one with --to."
        )
    before = by_number.get(earlier[-1])
    return origin(before).number if before else earlier[-1]


def _go_back(store: Store, name: str, current: Move, target: Move) -> Move:
    wanted = target.number
    try:
        require_whole(store, target.id)
    except ArtifactNotFoundError as error:
        raise ArtifactNotFoundError(
            f"{name!r} cannot go back to move {wanted}: its artifact {target.id[:12]} is no longer in the store "
            f"{store.url}. `impart history {name}` lists the other moves; compressing again makes it anew."
        ) from error
    if current.id == target.id:
        return current
    made = write_move(store, name, new_move(current.number + 1, target.id, f"rollback to {wanted}"))
    if made is None:
        raise StoreError(
            f"{name!r} was moved by someone else at this moment, and was not rolled back. "
            f"See where it points now (`impart history {name}`), and try again."
        )
    return made


def _taken_log(store: Store, name: str) -> Log:
    """Return the log of a name whose last move can be read; errors as in `history`."""
    log = read_logs(store, {name: _taken(store, name)}).get(name)
    if log is None or log.current is None:
        raise StoreError(f"The name {name!r} was removed by someone else at this moment.")
    return log


def _taken(store: Store, name: str) -> list[int]:
    """Return the numbers of a name's moves; errors as in `history`."""
    numbers = numbers_of(store, name)
    if not numbers:
        names = store.objects.names("refs")
        if names:
            raise unknown_name("name", name, names)
        store.require_there()
        raise ArtifactNotFoundError(f"The store {store.url} holds no names, so not {name!r} either.")
    return numbers


def _moved_all_the_time(name: str) -> StoreError:
    return StoreError(f"The name {name!r} is being moved by others all the time. Try again.")
