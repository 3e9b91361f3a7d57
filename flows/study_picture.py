"""The picture of a search: its history, quality against bytes, bars a task beside others, and importance."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from impart_core.artifacts.study import StudyRecord
from impart_core.base.units import human_bytes
from impart_core.searching.result import Trial

_COLOURS = {"complete": "C0", "pruned": "0.65", "failed": "C3"}
FORMATS = ("png", "svg")


def draw_study(record: StudyRecord, form: str) -> bytes:
    """Return the picture of a search.

    Args:
        record: what is kept of it.
        form: `png` or `svg`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # The same study gives the same bytes: neither a date nor random ids in them.
    with matplotlib.rc_context({"svg.hashsalt": "impart"}):
        figure, axes = plt.subplots(2, 2, figsize=(12, 8.4))
        _history(axes[0, 0], record)
        _against_bytes(axes[0, 1], record)
        _bars(axes[1, 0], record)
        _importance(axes[1, 1], record)
        study = record.study
        figure.suptitle(
            f"{record.file['sampler']['name']}, {len(study.trials)} trials on {', '.join(record.file['tasks'])}"
        )
        figure.tight_layout()
        written = BytesIO()
        figure.savefig(written, format=form, dpi=120, metadata={"Date": None} if form == "svg" else {})
        plt.close(figure)
    return written.getvalue()


def _first(record: StudyRecord) -> tuple[str, bool]:
    """Return the first objective that is no bytes, and whether lower is better."""
    name = next(name for name in record.study.objectives if name != "bytes")
    return name, record.study.objectives[name] == "minimize"


def _scatter(axes: Any, trials: Sequence[Trial], across: Sequence[float], name: str) -> None:
    """Draw trials as points in the colour of their state, complete ones with standard errors."""
    for state in ("pruned", "complete"):
        chosen = [(x, trial) for x, trial in zip(across, trials, strict=True) if trial.state == state]
        axes.errorbar(
            [x for x, _ in chosen],
            [trial.quantities[name] for _, trial in chosen],
            yerr=[trial.stderrs.get(name, 0.0) if state == "complete" else 0.0 for _, trial in chosen],
            fmt="o",
            markersize=4,
            elinewidth=0.8,
            color=_COLOURS[state],
            label=state if chosen else None,
        )


def _history(axes: Any, record: StudyRecord) -> None:
    name, lower = _first(record)
    trials = record.study.trials
    _scatter(axes, trials, [trial.number for trial in trials], name)
    best, steps = None, []
    for trial in trials:
        if trial.state == "complete" and trial.feasible:
            value = trial.quantities[name]
            best = value if best is None else (min if lower else max)(best, value)
        steps.append(float("nan") if best is None else best)
    axes.step(range(len(steps)), steps, where="post", color="C2", label="best so far")
    for trial in trials:
        if trial.state == "failed":
            axes.axvline(trial.number, color=_COLOURS["failed"], linewidth=0.8, alpha=0.6)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _labels(axes, "trial (red lines: failed)", f"{name} on validation items")
    axes.legend(frameon=False, fontsize=8)


def _against_bytes(axes: Any, record: StudyRecord) -> None:
    name, _ = _first(record)
    trials = [trial for trial in record.study.trials if trial.bytes is not None and trial.quantities]
    if not trials:
        _nothing(axes, "bytes were not counted")
        return
    _scatter(axes, trials, [trial.bytes or 0 for trial in trials], name)
    front = sorted((record.study.trials[number] for number in record.study.front), key=lambda trial: trial.bytes or 0)
    front = [trial for trial in front if trial.bytes is not None]
    label = "Pareto front" if len(record.study.objectives) > 1 else "best"
    axes.plot([one.bytes for one in front], [one.quantities[name] for one in front], "s-", color="C1", label=label)
    axes.xaxis.set_major_formatter(lambda count, _: human_bytes(int(count)))
    axes.tick_params(axis="x", labelsize=8)
    _labels(axes, "bytes", f"{name} on validation items")
    axes.legend(frameon=False, fontsize=8)


def _bars(axes: Any, record: StudyRecord) -> None:
    if record.verdict is None:
        _nothing(axes, "there is no winner")
        return
    tasks: dict[str, str] = record.file["tasks"]
    standings = record.verdict.test
    width = 0.8 / len(standings)
    for number, (label, standing) in enumerate(standings.items()):
        values = [standing.metrics[task][metric] for task, metric in tasks.items()]
        axes.bar(
            [place + number * width for place in range(len(tasks))],
            [value for value, _ in values],
            width,
            yerr=[error or 0.0 for _, error in values],
            capsize=2,
            label=label,
        )
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(tasks))])
    axes.set_xticklabels([f"{task}\n{metric}" for task, metric in tasks.items()], fontsize=8)
    _labels(axes, "", "on the test split, with standard errors")
    axes.legend(frameon=False, fontsize=8)


def _importance(axes: Any, record: StudyRecord) -> None:
    shares = sorted(record.study.importance.items(), key=lambda item: item[1])
    if not shares:
        _nothing(axes, "importance is not known")
        return
    axes.barh([name for name, _ in shares], [share for _, share in shares], color="C4")
    _labels(axes, f"share in the variance of {_first(record)[0]}", "")


def _labels(axes: Any, across: str, up: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)


def _nothing(axes: Any, why: str) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, why, ha="center", va="center", color="0.4")
