"""The slots of a limit over time, as the server's database and its leases have them; and how long the dead held one."""

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Look:
    """What was seen at a moment.

    Attributes:
        when: seconds since 1970.
        taken: slots that are taken by the database; None: it did not answer.
        leases: who holds each lease, a flow run, by the lease's id.
    """

    when: float
    taken: int | None
    leases: Mapping[str, str]


@dataclass
class SlotWatch:
    """Looks at a limit again and again as long as a `with` block lasts.

    Attributes:
        database: the address of Prefect's database, as asyncpg takes it.
        leases: the folder of the server's leases.
        limit: the limit's id.
        looks: what was seen, in order.
    """

    database: str
    leases: Path
    limit: str
    looks: list[Look] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "SlotWatch":
        """Begin."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def query(self, asked: str) -> list[list[Any]] | None:
        """Return the rows that the database gives; None: it does not answer."""

        async def fetch() -> list[list[Any]]:
            connection = await asyncpg.connect(self.database, timeout=5)
            try:
                return [list(row) for row in await connection.fetch(asked, timeout=20)]
            finally:
                await connection.close()

        try:
            return asyncio.run(fetch())
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return None

    def look(self) -> Look:
        """Return what is to be seen now."""
        rows = self.query(f"select active_slots from concurrency_limit_v2 where id = '{self.limit}'")
        found: dict[str, str] = {}
        for path in self.leases.glob("*-*.json"):
            with suppress(OSError, ValueError):  # it is replaced, or goes, meanwhile
                lease = json.loads(path.read_text())
                if self.limit in lease["resource_ids"]:
                    found[lease["id"]] = str(lease["metadata"]["holder"]["id"])
        return Look(time.time(), int(rows[0][0]) if rows else None, found)

    def held_by_the_dead(self, deaths: Mapping[str, float]) -> float:
        """Return the longest time, in seconds, that a lease was there after its holder's death."""
        longest = 0.0
        for look in self.looks:
            for holder in look.leases.values():
                longest = max(longest, look.when - deaths.get(holder, look.when))
        return longest

    def held_by_nobody(self) -> float:
        """Return the longest time, in seconds, that more slots were taken than there are leases."""
        longest, since = 0.0, None
        for look in self.looks:
            if look.taken is None:
                continue
            if look.taken <= len(look.leases):
                since = None
            else:
                since = since or look.when
                longest = max(longest, look.when - since)
        return longest

    def _watch(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            self.looks.append(self.look())
