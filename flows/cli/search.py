"""Verbs that search: run a search file, and show what was found."""

from pathlib import Path
from typing import Annotated

import typer

from impart_core.artifacts.study import StudyRecord, read_study
from impart_core.base.errors import ConfigError, OutputExistsError
from impart_core.base.files import disk_errors, write_atomically
from impart_core.engine.search import CheckedSearch, SearchReport, SearchRequest, check_search
from impart_core.searching.hole import AnyHole, Range
from impart_core.searching.starts import starting_values
from impart_core.store.names import resolve
from impart_core.store.store import Store
from impart_flows.cli import options as opt
from impart_flows.cli.failure import WRONG_REQUEST
from impart_flows.cli.flags import from_flags
from impart_flows.cli.output import errors, human_seconds, print_json, print_table, progress, say, warn
from impart_flows.embedded import prefect_server
from impart_flows.search import run_search
from impart_flows.search_page import measured, standings, trials, why_no_winner
from impart_flows.study_picture import FORMATS, draw_study
from impart_tasks.cluster import check_runner

DryRun = Annotated[bool, typer.Option("--dry-run", help="Check it and say what would be tried; evaluate nothing.")]
Picture = Annotated[Path | None, typer.Option(help="Write the picture to this file: .svg or .png.")]
_WORKERS = typer.Option(show_default="as many as the file has in parallel", help="Candidates worked on at once.")


@from_flags(SearchRequest, workers=_WORKERS)
def search(request: SearchRequest, dry_run: DryRun = False, json: opt.JsonOption = False) -> None:
    """Search on validation items, score the winner once on the test split, and publish it with its margins.

    A search that was stopped goes on where it was, and no candidate is ever scored twice on the same items.

    Example: impart search run search.yaml --dry-run
    """
    check_runner(request, request.store)
    checked = check_search(request)
    warn(checked.notes)
    if dry_run:
        _tell_plan(checked, json)
        return
    with progress(quiet=json) as reporter, prefect_server(reporter):
        report = run_search(request, checked, reporter)
    if json:
        print_json(report.model_dump(mode="json"))
    else:
        _tell(report)
    if report.record.winner is None:
        named = f", and nothing is published as {request.file.name}" if request.file.name else ""
        errors.print(f"error: There is no winner{named}: {why_no_winner(report.record)}. The study is kept.")
        raise typer.Exit(WRONG_REQUEST)


def show(
    ref: opt.Ref,
    out: Picture = None,
    store: opt.StoreOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Show what a search found: each trial, the winner beside others on the test split, what mattered.

    The picture has the history, quality against bytes with the Pareto front, bars for each task, and importance.

    Example: impart search show math.study@best --out study.svg
    """
    if out and (out.is_dir() or out.suffix[1:] not in FORMATS):
        kind = OutputExistsError if out.is_dir() else ConfigError
        raise kind(f"{out} cannot be the picture. --out takes the name of a file that ends in .svg or .png.")
    opened = Store(store)
    study = resolve(opened, ref)
    record = read_study(opened, study)
    if out:
        target = out.absolute()
        with disk_errors(target):
            write_atomically(target, draw_study(record, out.suffix[1:]))
    if json:
        print_json({"id": study, "out": str(target) if out else None, **record.model_dump(mode="json")})
        return
    print_table(*trials(record))
    _tell_record(record)
    if out:
        say(str(target))


def _tell_plan(checked: CheckedSearch, json: bool) -> None:
    """Say what a search would do."""
    file = checked.file
    rungs = [stop for _, stop in file.rungs(checked.available)]
    starts = [dict(file.space.fill(values).values) for values in starting_values(file.space, file.starts)]
    if json:
        told = {"parameters": {name: hole.model_dump(mode="json") for name, hole in file.space.holes.items()}}
        print_json(
            {
                **told,
                "notes": checked.notes,
                "candidates": file.space.size,
                "starts": starts,
                "items": rungs,
                "test_items": checked.test,
                "objectives": file.goals,
                "tasks": file.tasks,
            }
        )
        return
    rows = [[name, _range_of(hole), str(hole.start)] for name, hole in file.space.holes.items()]
    print_table(["parameter", "values", "default"], rows)
    size = "no end of" if file.space.size is None else f"{file.space.size:,}"
    say(f"candidates     {size}, by {file.sampler.name}, {file.parallel} at once; {len(starts)} starts")
    say(f"objectives     {', '.join(f'{goal} {name}' for name, goal in file.goals.items())}")
    say(f"validation     {', then '.join(map(str, rungs))} items of each of {', '.join(file.tasks)}")
    say(f"test           {', '.join(f'{count} of {task}' for task, count in checked.test.items())}, for the winner")
    budget = file.budget.model_dump(exclude_none=True)
    say(f"budget         {', '.join(f'{value:g} {name}' for name, value in budget.items()) or 'all candidates'}")


def _range_of(hole: AnyHole) -> str:
    if not isinstance(hole, Range):
        return ", ".join(map(str, hole.choose))
    low, high = hole.range
    step = f" by {hole.step:g}" if hole.step else ", by its logarithm" if hole.log else ""
    return f"{low:g} to {high:g}{step}"


def _tell(report: SearchReport) -> None:
    say(f"study          {report.id}" + (f" ({report.study_name})" if report.study_name else ""))
    if report.record.winner:
        say(f"winner         {report.record.winner}" + (f" ({report.name})" if report.name else ""))
    _tell_record(report.record)
    tally = report.record.tally
    found = f"{tally['evaluated']:.0f} scores measured, {tally['found']:.0f} found"
    say(f"took           {human_seconds(report.seconds)}: " + ("the study was there" if report.cached else found))


def _tell_record(record: StudyRecord) -> None:
    study, best = record.study, record.study.winner
    states = [trial.state for trial in study.trials]
    pruned, failed = states.count("pruned"), states.count("failed")
    say(f"trials         {len(states)}: {pruned} pruned, {failed} failed; {study.stopped}")
    if best is None or record.verdict is None:
        say(f"best           none: {why_no_winner(record)}")
        return
    say(f"best           trial {best.number}: " + ", ".join(f"{name} {value}" for name, value in best.values.items()))
    values = (
        f"{name} {best.quantities[name]:,.0f}"
        if name == "bytes"
        else f"{name} {measured((best.quantities[name], best.stderrs.get(name)))}"
        for name in study.objectives
    )
    say(f"validation     {', '.join(values)}")
    if study.importance:
        say("importance     " + ", ".join(f"{name} {share:.2f}" for name, share in study.importance.items()))
    print_table(*standings(record))
