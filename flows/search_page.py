"""The page of a search's run in Prefect: the winner, its standing on the test split, every trial."""

from base64 import b64encode
from collections.abc import Sequence

from prefect.artifacts import create_image_artifact, create_markdown_artifact

from impart_core.artifacts.study import StudyRecord
from impart_core.engine.search import SearchReport
from impart_core.searching.objective import Constraint
from impart_core.store.manifest import Measured
from impart_flows.run_page import markdown_table, never_failing, page_key
from impart_flows.study_picture import draw_study

Row = list[str]


def show_search(report: SearchReport) -> None:
    """Put what a search found on its run's page: a text with tables, and the picture."""
    name = report.name or report.id[:12]
    with never_failing():
        create_markdown_artifact(_text(report), page_key("search", name), f"The search for {name}, as of this run.")
        picture = b64encode(draw_study(report.record, "png")).decode()
        create_image_artifact(
            f"data:image/png;base64,{picture}", page_key("search-picture", name), f"What the search for {name} found."
        )


def measured(value: Measured) -> str:
    """Return a value and its standard error for people."""
    number, error = value
    return f"{number:.4f}" if error is None else f"{number:.4f} ± {error:.4f}"


def standings(record: StudyRecord) -> tuple[Row, list[Row]]:
    """Return columns and rows of the table of how the winner and others do on the test split."""
    verdict = record.verdict
    assert verdict is not None
    columns = ["on the test split"]
    columns += [f"{task} {metric}" for task, of in verdict.test["winner"].metrics.items() for metric in of]
    rows = []
    for name, standing in verdict.test.items():
        margin = verdict.margins.get(name)
        cells = [measured(value) for of in standing.metrics.values() for value in of.values()]
        told = "" if margin is None else f"{measured((margin.value, margin.stderr))}, p {margin.p:.2g}"
        rows.append([name, *cells, told])
    return [*columns, "winner is above it by"], rows


def trials(record: StudyRecord) -> tuple[Row, list[Row]]:
    """Return columns and rows of the table of trials."""
    study = record.study
    names = list(study.trials[0].values) if study.trials else []
    columns = ["trial", *names, *study.objectives, "state"]
    rows = []
    for trial in study.trials:
        values = [_value(trial.values[name]) for name in names]
        quantities = [f"{trial.quantities[name]:.5g}" if trial.quantities else "—" for name in study.objectives]
        mark = " (best)" if trial.number == study.best else " (front)" if trial.number in study.front[1:] else ""
        rows.append(
            [f"{trial.number}{mark}", *values, *quantities, trial.state + (f": {trial.why}" if trial.why else "")]
        )
    return columns, rows


def why_no_winner(record: StudyRecord) -> str:
    """Return why a search has no winner: how near its trials came to each bound, or why they failed."""
    trials = record.study.trials
    scored = [trial for trial in trials if trial.state == "complete"]
    if not scored:
        failed = [trial for trial in trials if trial.state == "failed"]
        why = f"; trial {failed[0].number} because: {failed[0].why}" if failed else ""
        return f"no trial is complete, {len(failed)} of {len(trials)} failed{why}"
    missed = []
    for raw in record.file["constraints"]:
        bound = Constraint.model_validate(raw)
        name = bound.of.name
        near = min(scored, key=lambda trial: bound.excess(trial.quantities[name]))
        if bound.excess(near.quantities[name]) > 0:
            missed.append(f"{bound.name} (nearest: {near.quantities[name]:.5g}, trial {near.number})")
    if not missed:
        return f"each constraint is kept by one of {len(scored)} complete trials or another, and no trial keeps all"
    return f"none of {len(scored)} complete trials keeps {', or '.join(missed)}"


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(report: SearchReport) -> str:
    record = report.record
    parts = [
        f"# {report.name or f'Search {report.id[:12]}'}",
        f"{len(record.study.trials)} trials: {record.study.stopped}.",
    ]
    if record.verdict is None:
        parts.append(f"There is no winner: {why_no_winner(record)}.")
    else:
        parts.append(markdown_table(*standings(record)))
    if record.study.importance:
        shares: Sequence[Row] = [[name, f"{share:.2f}"] for name, share in record.study.importance.items()]
        parts += ["## Importance", markdown_table(["parameter", "share of variance"], shares)]
    parts += ["## Trials", markdown_table(*trials(record))]
    return "\n\n".join(parts)
