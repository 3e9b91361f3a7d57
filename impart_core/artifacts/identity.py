"""Ids from content: the SHA-256 of the canonical JSON of what made an artifact (DESIGN.md §3)."""

import hashlib
import json
from typing import Any

from impart_core.config import Frozen


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


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of a value: keys sorted, no spaces, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_of(value: Any) -> str:
    """Return the SHA-256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
