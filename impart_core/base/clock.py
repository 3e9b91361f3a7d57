"""A clock that also runs while the machine sleeps."""

import time


def seconds_awake_or_asleep() -> float:
    """Return seconds that rise while a process is stopped and while its machine is suspended, too.

    `time.monotonic` stands still in suspend on Linux. Where there is no clock for this the time of day serves.
    """
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time() if clock is None else time.clock_gettime(clock)
