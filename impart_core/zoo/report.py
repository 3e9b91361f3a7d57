"""A run of the zoo as a page for people: Markdown, and HTML of one file."""

from collections.abc import Iterator, Sequence
from html import escape

from impart_core.base.units import human_bytes, human_seconds
from impart_core.zoo.forecast import told
from impart_core.zoo.gate import quality
from impart_core.zoo.record import Counts, Outcome, ZooRun

_COLUMNS = ("entry", "status", "owner", "step", "ratio", "before", "after", "quality", "time")
_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#1c1c1c}
table{border-collapse:collapse;width:100%}th,td{padding:.35rem .6rem;text-align:left;vertical-align:top}
th{border-bottom:2px solid #444}td{border-bottom:1px solid #ddd}.failed td{background:#fbe3e0}
.refused td{background:#fdf3d7}.promoted td{background:#e6f4e6}td:nth-child(n+5):nth-child(-n+7){white-space:nowrap}
"""


def headline(run: ZooRun) -> str:
    """Return a run in one sentence."""
    counts = ", ".join(f"{number} {status}" for status, number in run.counts.items()) or "nothing to do"
    return f"{run.zoo}: {counts}, in {human_seconds(run.seconds)}."


def saved(run: ZooRun) -> str:
    """Return in one sentence what all deltas together take up."""
    counts = Counts.of(run)
    if not counts.bytes_after:
        return "No model has a promoted delta."
    times = counts.bytes_before / counts.bytes_after
    smaller = f"{times:.1f} times smaller" if times >= 1 else f"{1 / times:.1f} times larger"
    return (
        f"{human_bytes(counts.bytes_before)} of fine-tuned models are kept in {human_bytes(counts.bytes_after)} "
        f"({smaller})."
    )


def rows(run: ZooRun) -> tuple[list[str], list[list[str]]]:
    """Return the entries as a table: its columns, and a row each."""
    return list(_COLUMNS), [list(_cells(outcome)) for outcome in run.outcomes]


def markdown_report(run: ZooRun) -> str:
    """Return a run as a page in Markdown."""
    lines = [
        f"# Zoo {_plain(run.zoo)}",
        "",
        f"Run {run.run}, {run.started}. {_plain(headline(run))}",
        "",
        saved(run),
        "",
    ]
    lines += [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    lines += [f"| {' | '.join(map(_plain, _cells(outcome)))} |" for outcome in run.outcomes]
    for outcome, why in reasons(run):
        lines += ["", f"**{_plain(outcome.name)}** {outcome.status}: {_plain(why)}"]
    lines += ["", *(f"- {_plain(sentence)}" for sentence in run.trouble)]
    return "\n".join(lines).rstrip() + "\n"


def html_report(run: ZooRun) -> str:
    """Return a run as a page in HTML, whole in itself."""
    head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
    rows = "".join(map(_row, run.outcomes))
    told_of = "".join(
        f"<p><b>{escape(outcome.name)}</b> {outcome.status}: {escape(why)}</p>" for outcome, why in reasons(run)
    )
    trouble = "".join(f"<p>{escape(sentence)}</p>" for sentence in run.trouble)
    title = f"Zoo {escape(run.zoo)}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p>Run {escape(run.run)}, {escape(run.started)}. {escape(headline(run))}</p>"
        f"<p>{escape(saved(run))}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"{told_of}{trouble}</html>\n"
    )


def _row(outcome: Outcome) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in _cells(outcome))
    return f'<tr class="{outcome.status.replace(" ", "-")}">{cells}</tr>'


def _cells(outcome: Outcome) -> Sequence[str]:
    last = outcome.attempts[-1] if outcome.attempts else None
    after = last.bytes if last and outcome.status == "refused" else outcome.bytes_after  # of the step that is shown
    ratio = outcome.bytes_before / after if outcome.bytes_before and after else None
    return (
        outcome.name,
        outcome.status,
        outcome.owner or "",
        last.step if last else "",
        f"{ratio:.1f}" if ratio else "",
        human_bytes(outcome.bytes_before) if outcome.bytes_before else "",
        human_bytes(after) if after else "",
        "; ".join(map(quality, last.gate)) if last else "",
        human_seconds(outcome.seconds),
    )


def reasons(run: ZooRun) -> Iterator[tuple[Outcome, str]]:
    """Give what there is to say of entries: what went wrong, and which steps were passed over."""
    for outcome in run.outcomes:
        if outcome.why and outcome.status != "unchanged":
            yield outcome, outcome.why
        if not_tried := told(outcome.forecasts):
            yield outcome, not_tried


def _plain(text: str) -> str:
    """Return text that is one cell or line of Markdown, whatever is in it."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")
