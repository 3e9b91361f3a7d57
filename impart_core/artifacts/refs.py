"""Names for artifacts: a ref is a numbered log of the ids that it pointed to; the highest number is in force.

Each entry is created under a free number or not at all, so that moves are atomic and history is kept.
"""

import re
from datetime import UTC, datetime

from pydantic import ValidationError

from impart_core.artifacts.identity import canonical_json
from impart_core.artifacts.manifest import Sha256
from impart_core.artifacts.store import Store
from impart_core.config import Frozen
from impart_core.errors import (
    ArtifactNotFoundError,
    ConfigError,
    CorruptArtifactError,
    StoreError,
    unknown_name,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(@[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
_ID = re.compile(r"[0-9a-f]{6,64}")
_ATTEMPTS = 100
_LARGEST = 64 << 10


class RefEntry(Frozen):
    """One move of a ref: the artifact id it points to since then, and when (UTC, ISO 8601)."""

    id: Sha256
    moved: str


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


def set_ref(store: Store, name: str, artifact_id: str) -> None:
    """Point a name to an artifact; nothing is written when it points there already.

    Raises:
        StoreError: other writers kept moving the same name.
    """
    require_ref_name(name)
    entry = RefEntry(id=artifact_id, moved=datetime.now(UTC).isoformat(timespec="seconds"))
    for _ in range(_ATTEMPTS):
        numbers = _numbers(store, name)
        if numbers and _entry(store, name, numbers[-1]).id == artifact_id:
            return
        following = (numbers[-1] if numbers else 0) + 1
        if store.create(_path(name, following), canonical_json(entry.model_dump())):
            return
    raise StoreError(f"The name {name!r} is being moved by others all the time. Try again.")


def get_ref(store: Store, name: str) -> str | None:
    """Return the id that a name points to, or None where the name is not taken."""
    numbers = _numbers(store, name) if _NAME.fullmatch(name) else []
    return _entry(store, name, numbers[-1]).id if numbers else None


def all_refs(store: Store) -> dict[str, str]:
    """Return every name and the id that it points to."""
    return {name: moves[-1].id for name, moves in all_moves(store).items()}


def all_moves(store: Store) -> dict[str, list[RefEntry]]:
    """Return every name's moves, oldest first, with few requests.

    Raises:
        CorruptArtifactError: one of them is damaged.
    """
    found: dict[str, dict[int, RefEntry]] = {}
    for path, data in store.objects.read_many(sorted(store.objects.find("refs")), _LARGEST).items():
        _, name, file = path.split("/", 2)
        stem = file.removesuffix(".json")
        if _NAME.fullmatch(name) and stem.isdecimal():
            found.setdefault(name, {})[int(stem)] = _parse(store, path, data)
    return {name: [moves[number] for number in sorted(moves)] for name, moves in sorted(found.items())}


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
        fitting = [found for found in store.ids() if found.startswith(ref)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise ConfigError(f"{ref!r} is the beginning of {len(fitting)} artifact ids. Give more digits.")
    names = store.names_under("refs")
    if names:
        raise unknown_name("artifact", ref, names)
    raise ArtifactNotFoundError(f"There is no artifact {ref!r} in the store {store.url}, and it holds no names.")


def _path(name: str, number: int) -> str:
    return f"refs/{name}/{number:08d}.json"


def _numbers(store: Store, name: str) -> list[int]:
    stems = (file.removesuffix(".json") for file in store.names_under(f"refs/{name}"))
    return sorted(int(stem) for stem in stems if stem.isdigit())


def _entry(store: Store, name: str, number: int) -> RefEntry:
    path = _path(name, number)
    return _parse(store, path, store.read(path) or b"")


def _parse(store: Store, path: str, data: bytes) -> RefEntry:
    try:
        return RefEntry.model_validate_json(data)
    except ValidationError as error:
        raise CorruptArtifactError(f"{store.url}/{path} is not a ref. Delete it to fall back one move.") from error
