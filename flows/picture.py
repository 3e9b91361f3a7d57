"""The demo's picture: accuracy and loss against bytes, one line a task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from impart_flows.demo import DemoReport, DemoRow

Metric = Callable[[DemoRow], tuple[float, float | None]]


def draw(report: DemoReport, path: Path) -> None:
    """Draw exact match and answer loss, with standard errors, against stored bytes into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (accuracy, loss) = plt.subplots(1, 2, figsize=(11, 4.4))
    _panel(accuracy, report, lambda row: row.exact_match, "exact match")
    _panel(loss, report, lambda row: row.answer_loss, "answer loss (nats a token)")
    loss.set_yscale("log")
    accuracy.legend(frameon=False, loc="center right")
    figure.suptitle(f"Tiny zoo, ImPart, {report.items} test items a task: what is left against what is stored")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panel(axes: Any, report: DemoReport, metric: Metric, label: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    for number, task in enumerate(dict.fromkeys(row.task for row in report.rows)):
        rows = [row for row in report.rows if row.task == task]
        stored = [row for row in rows if row.bytes]
        values = [metric(row) for row in stored]
        axes.errorbar(
            [row.bytes for row in stored],
            [value for value, _ in values],
            yerr=[error or 0.0 for _, error in values],
            marker="o",
            capsize=3,
            color=f"C{number}",
            label=task,
        )
        axes.axhline(metric(rows[0])[0], color=f"C{number}", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([250_000 * 2**step for step in range(6)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count / 1e6:g} MB"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes stored (rightmost: the fine-tuned checkpoint; dotted: the base)")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
