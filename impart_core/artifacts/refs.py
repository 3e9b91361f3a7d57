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
_ENTRY = re.compile(r"([0-9]{8})\.json")
_ATTEMPTS = 100


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
    found = {name: get_ref(store, name) for name in store.names_under("refs")}
    return {name: artifact_id for name, artifact_id in found.items() if artifact_id}


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
    found = (_ENTRY.fullmatch(file) for file in store.names_under(f"refs/{name}"))
    return sorted(int(entry[1]) for entry in found if entry)


def _entry(store: Store, name: str, number: int) -> RefEntry:
    path = _path(name, number)
    try:
        return RefEntry.model_validate_json(store.read(path) or b"")
    except ValidationError as error:
        raise CorruptArtifactError(f"{store.url}/{path} is not a ref. Delete it to fall back one move.") from error
