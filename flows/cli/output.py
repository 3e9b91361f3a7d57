"""What the command line prints: results on standard output, everything else on standard error."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from impart_core.base.text import visible, visible_json
from impart_core.base.units import human_bytes as human_bytes
from impart_core.base.units import human_seconds as human_seconds

if TYPE_CHECKING:  # settings take as long to load as all the rest
    from impart_core.base.settings import Frozen

_SECONDS_BETWEEN_LINES = 2.0
_WARNINGS_OF_A_KIND = 3
_WIDEST = 10_000  # columns; where a terminal has fewer, it breaks the line

ReportT = TypeVar("ReportT", bound="Frozen")


class _Stderr(Console):
    """Standard error for people; what may come from anywhere is printed as `visible` text."""

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print objects, text among them without markup."""
        shown = (visible(one) if isinstance(one, str) else one for one in objects)
        super().print(*shown, **{"markup": False, **settings})


errors = _Stderr(stderr=True, soft_wrap=True, highlight=False)


def say(text: str = "") -> None:
    """Print one line on standard output, in which nothing can steer the terminal."""
    typer.echo(visible(text))


class _Warnings(logging.Handler):
    """Prints what the library warns of on standard error, as other warnings are; of each kind the first few."""

    def __init__(self) -> None:
        """Take warnings, and nothing below."""
        super().__init__(logging.WARNING)
        self._kinds: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a sentence."""
        self._kinds[str(record.msg)] += 1
        if self._kinds[str(record.msg)] <= _WARNINGS_OF_A_KIND or record.msg == "%s":
            errors.print(f"warning: {record.getMessage()}")

    def end(self) -> None:
        """Tell how many were not printed."""
        more = sum(max(0, number - _WARNINGS_OF_A_KIND) for kind, number in self._kinds.items() if kind != "%s")
        if more:
            errors.print(f"warning: {more} more like these; the log of the run has all.")


@contextmanager
def printed_warnings(logger: str) -> Iterator[None]:
    """Print the warnings of a logger inside the block, whatever else is done about logging."""
    found, handler = logging.getLogger(logger), _Warnings()
    found.addHandler(handler)
    try:
        yield
    finally:
        found.removeHandler(handler)
        handler.end()


def show(report: ReportT, json: bool, print_text: Callable[[ReportT], None]) -> None:
    """Print a report: as one JSON object, or for people."""
    if json:
        print_json(report.model_dump(mode="json"))
    else:
        print_text(report)


def print_json(value: Any) -> None:
    """Print one JSON object, alone on standard output."""
    typer.echo(visible_json(json.dumps(value, ensure_ascii=False, allow_nan=False)))


def print_table(columns: list[str], rows: list[list[str]], title: str | None = None) -> None:
    """Print a table on standard output, the first column to the left, the others to the right, no text cut short."""
    table = Table(title=title and visible(title), title_justify="left", header_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(visible(column), justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(visible, row))
    console = Console(highlight=False, markup=False)
    needed = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
    Console(width=max(needed, console.width), highlight=False, markup=False).print(table)


def print_lines(texts: Mapping[str, str | None]) -> None:
    """Print a line each: the key, and its text in a column of its own."""
    width = max(map(len, texts), default=0)
    for key, text in texts.items():
        say(f"{key:{width}}  {text or ''}".rstrip())


def warn(notes: Iterable[str]) -> None:
    """Say on standard error what whoever asked should know."""
    for note in notes:
        errors.print(f"warning: {note}")


def warn_of_faults(remade: Iterable[str], changed: Iterable[str]) -> None:
    """Say on standard error what had to be made anew, and what came out otherwise than before."""
    for fault in remade:
        errors.print(f"warning: {fault.partition('. Compress with')[0].rstrip('.')}. It was made anew.")
    for artifact in changed:
        errors.print(
            f"warning: {artifact[:12]} came out otherwise than the one that was published. The store holds the new "
            "one; what else was made with the former can be checked with `impart verify`."
        )


def shortened(names: Sequence[str], most: int = 8) -> str:
    """Return names in one line: the first ones, and how many more there are."""
    shown = ["".join(sign if sign.isprintable() else "?" for sign in name) for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def ratio(value: float | None) -> str:
    """Return a ratio for people; none means that there was nothing to store."""
    return "no change" if value is None else f"{value:.2f}×"


@contextmanager
def progress(quiet: bool = False) -> Iterator["Reporter"]:
    """Give a progress listener: bars on a terminal, a line a step elsewhere, nothing when quiet."""
    reporter = Reporter(bars=errors.is_terminal and not quiet, quiet=quiet)
    with reporter.display:
        try:
            yield reporter
        except Exception as error:
            error.add_note(reporter.last)
            raise


class Reporter:
    """Listens to progress; see `impart_core.engine.executor.Progress`."""

    def __init__(self, bars: bool, quiet: bool) -> None:
        """Make a listener that shows bars, or lines, or nothing."""
        self.last = "the preparations"  # what was done last, in a few words
        self._bars, self._quiet = bars, quiet
        self.display = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}", markup=False),
            console=errors,
            disable=not bars,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started = self._printed = time.monotonic()

    def __call__(self, stage: str, done: int, total: int, what: str) -> None:
        """Show that `done` of `total` pieces of a stage are finished."""
        self.last = " ".join(filter(None, (f"{stage}, {done} of {total} done", what)))
        if self._bars:
            if stage not in self._tasks or done == 0:
                self._tasks[stage] = self.display.add_task(stage, total=total, what="")
            self.display.update(self._tasks[stage], completed=done, total=total, what=visible(what))
        elif not self._quiet:
            self._print_line(stage, done, total, what)

    def _print_line(self, stage: str, done: int, total: int, what: str) -> None:
        """Print a line when a stage ends, and between at most one in two seconds."""
        now = time.monotonic()
        if done == total or (done and now - self._printed >= _SECONDS_BETWEEN_LINES):
            self._printed = now
            errors.print(f"{stage} {done}/{total} {what} ({now - self._started:.1f} s)")
