"""Ids from content: the SHA-256 of the canonical JSON of what made an artifact."""

from typing import Any

from impart_core.base.canonical import digest_of
from impart_core.base.settings import Frozen


class Recipe(Frozen):
    """What makes an artifact, and nothing that does not: no path, date, device or worker count.

    Attributes:
        operation: the operation's name.
        version: its version; raised whenever the same config and inputs give other bytes.
        config: its settings, as JSON values.
        inputs: ids of its inputs by role (artifact ids, tensor digests).
    """

    operation: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, Any]

    @property
    def id(self) -> str:
        """The artifact id: 64 hexadecimal digits."""
        return digest_of(self.model_dump(mode="json"))
