"""How many faults tests injected, and how many the program survived."""

from collections import Counter

PROPERTY = "faults"  # of a test's report: its faults by kind, and whether it passed
injected: Counter[str] = Counter()
survived: Counter[str] = Counter()


class Tally:
    """The faults of one test: they count as survived when it passes."""

    def __init__(self) -> None:
        """Begin with none."""
        self.found: Counter[str] = Counter()

    def __call__(self, what: str, times: int = 1) -> None:
        """Count faults of one kind, named in a few words."""
        self.found[what] += times


def add(found: dict[str, int], passed: bool) -> None:
    """Add one test's faults to the session's."""
    injected.update(found)
    if passed:
        survived.update(found)


def summary() -> str:
    """Return the session's count in one line."""
    kinds = ", ".join(f"{count} {what}" for what, count in sorted(injected.items()))
    return f"faults injected: {injected.total()}, survived: {survived.total()} ({kinds})"
