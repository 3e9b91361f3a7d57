"""Progress by bytes, with the time left at the same pace, and the report of a copy."""

import time
from collections.abc import Callable

from impart_core.share.transfer import Tally, TransferReport
from impart_flows.cli.output import Reporter, human_bytes, human_seconds, say


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


def print_transfer(report: TransferReport) -> None:
    """Print what was copied and what was there."""
    say(f"copied   {_told(report.copied)}")
    say(f"skipped  {_told(report.skipped)}")
    if report.otherwise:
        say(f"kept     {len(report.otherwise)} of these as they were made there, with other bytes")
    if report.names:
        say(f"names    {', '.join(sorted(report.names))}")
    say(f"took     {human_seconds(report.seconds)}")


def _told(tally: Tally) -> str:
    if not tally.artifacts:
        return "nothing"
    kinds = [
        f"{count} {kind if count == 1 or kind.endswith('s') else f'{kind}s'}" for kind, count in tally.artifacts.items()
    ]
    return f"{', '.join(kinds)}: {human_bytes(tally.bytes)} in {tally.files} files"
