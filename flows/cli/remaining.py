"""Progress by bytes: how much of how much is done, and how long the rest will take at the same pace."""

import time
from collections.abc import Callable

from impart_flows.cli.output import Reporter, human_bytes


def by_bytes(reporter: Reporter, stage: str) -> Callable[[int, int, int, int], None]:
    """Return a listener to pieces and bytes that are done, which adds the time left."""
    started = time.monotonic()

    def listen(done: int, total: int, bytes_done: int, bytes_total: int) -> None:
        what = f"{human_bytes(bytes_done)} of {human_bytes(bytes_total)}"
        if 0 < bytes_done < bytes_total:
            left = (time.monotonic() - started) * (bytes_total - bytes_done) / bytes_done
            what += f", about {left:.0f} s left"
        reporter(stage, done, total, what)

    return listen
