"""Names to implementations: one registry a kind, collisions refused, the nearest name in every error."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from impart_core.base.errors import unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from the names that users write to the objects that do the work."""

    def __init__(self, kind: str) -> None:
        """Make an empty registry; `kind` is how its errors call an entry ("method")."""
        self._kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Add an entry and return it; a name that is taken is a programming error (ValueError)."""
        if name in self._entries:
            raise ValueError(f"{self._kind} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> T:
        """Return the entry of this name.

        Raises:
            UnknownNameError: with the nearest name and all that exist.
        """
        if name not in self._entries:
            raise unknown_name(self._kind, name, self._entries)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the registered names in order of their registration."""
        return iter(self._entries)
