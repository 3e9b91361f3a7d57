"""The verb `merge`: several models → one, as a file says."""

from typing import Annotated

import typer

from impart_core.engine.merge import MergeReport
from impart_core.engine.merge_models import MergePlan, check_merge, plan_of
from impart_core.engine.requests import MergeRequest
from impart_flows.cli import options as opt
from impart_flows.cli.flags import from_flags
from impart_flows.cli.output import human_bytes, human_seconds, print_table, progress, ratio, say, show, warn
from impart_flows.embedded import prefect_server
from impart_flows.merge import run_merge

DryRun = Annotated[bool, typer.Option("--dry-run", help="Check all, say what would be done, and do nothing.")]


@from_flags(MergeRequest, out=typer.Option(show_default=False, help="The folder to make; none: as FILE compresses it."))
def merge(request: MergeRequest, dry_run: DryRun = False, json: opt.JsonOption = False) -> None:
    """Merge models as a file says: mergekit's YAML, with a block of our own for deltas, sparsifiers and names.

    Example: impart merge merge.yaml --out merged
    """
    checked = check_merge(request)
    warn(checked.plan.notes)
    if dry_run:
        show(plan_of(checked), json, _print_plan)
        return
    with progress(quiet=json) as reporter, prefect_server(reporter):
        report = run_merge(request, checked, reporter)
    show(report, json, _print_report)


def _print_plan(plan: MergePlan) -> None:
    names = sorted({name for model in plan.models for name in model.options})
    rows = [
        [model.model, *(_range(model.options.get(name)) for name in names), model.sparsify or "—"]
        for model in plan.models
    ]
    print_table(["model", *names, "sparsified"], rows)
    say()
    shared = ", ".join(f"{name} {_range(values)}" for name, values in plan.options.items())
    say(f"method   {plan.method}" + (f" ({shared})" if shared else ""))
    if plan.base:
        say(f"base     {plan.base}")
    copied = f", {plan.copied} of them as they are" if plan.copied else ""
    say(f"tensors  {plan.tensors}{copied}, {human_bytes(plan.bytes)}")


def _range(values: tuple[float, float] | None) -> str:
    if values is None:
        return "—"
    least, most = values
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def _print_report(report: MergeReport) -> None:
    name = f" ({report.name})" if report.name and not report.delta else ""
    say(f"merge     {report.artifact}{name}")
    for made in report.sparsified:
        say(f"from      {made.artifact[:12]}, cr_projection {ratio(made.cr_projection)}")
    if report.out:
        say(f"folder    {report.out}: {report.tensors} tensors, {human_bytes(report.bytes)}")
    if report.delta:
        named = f" ({report.delta.name})" if report.delta.name else ""
        say(f"artifact  {report.delta.artifact}{named}, cr_projection {ratio(report.delta.cr_projection)}")
    for again in report.retried:
        say(f"retried   {again.what}, {again.times}×: {again.why}")
    say(f"took      {human_seconds(report.seconds)}, peak memory {human_bytes(report.peak_rss_bytes)}")
