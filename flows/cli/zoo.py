"""Verbs for a whole zoo: check its file, say what would be done, do it, and tell what became of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from impart_core.artifacts.zoo_run import last_zoo_run, ref_of
from impart_core.base.errors import ArtifactNotFoundError, ConfigError, OutputExistsError
from impart_core.base.files import disk_errors, write_atomically
from impart_core.base.spread import Spread
from impart_core.engine.zoo import check_zoo
from impart_core.engine.zoo_jobs import ZooRequest
from impart_core.engine.zoo_plan import ZooPlan, plan_zoo
from impart_core.store.store import Store, absolute_store
from impart_core.zoo.file import ZooFile, read_zoo_file
from impart_core.zoo.initial import initial_zoo
from impart_core.zoo.record import ZooRun
from impart_core.zoo.report import headline, html_report, markdown_report, reasons, rows, saved
from impart_flows.cli import options as opt
from impart_flows.cli.output import print_json, print_table, progress, say, show
from impart_flows.deployment import Deployed, Prepared, deploy_zoo, prepare_server
from impart_flows.embedded import prefect_server
from impart_flows.zoo import run_zoo_flow
from impart_tasks.cluster import check_runner

FAILED = 2
File = Annotated[Path, typer.Argument(help="The zoo file.", show_default=False)]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", help="Only these entries: a name, a pattern with *, tag:WORD or owner:NAME."),
]
Again = Annotated[bool, typer.Option("--again", help="Also what nothing has changed for.")]
Pool = Annotated[str, typer.Option(help="The work pool.", show_default=False)]
Queue = Annotated[str | None, typer.Option(help="A queue of the pool; none: its default.")]
Gpus = Annotated[int | None, typer.Option(min=1, help="Runs that use a GPU at once; none: the limit stays.")]
Runner = Annotated[str | None, opt.FLAGS["runner"]]
ClusterAddress = Annotated[str | None, opt.FLAGS["cluster"]]
Place = Annotated[str, typer.Argument(help="Where the models lie.", show_default=False)]
Base = Annotated[str | None, typer.Option(help="Their base; none: what each model's card or configuration says.")]
NewFile = Annotated[Path | None, typer.Option("--out", help="Write it to this file; none: print it.")]
Out = Annotated[Path | None, typer.Option(help="Write it to this file: .html, .md or .json.")]


def init(place: Place, base: Base = None, out: NewFile = None, json: opt.JsonOption = False) -> None:
    """Write a first zoo file for the models at a place: a folder, an S3 prefix, or hf://org.

    Example: impart zoo init /models --base org/base --out zoo.yaml
    """
    text = initial_zoo(place if "://" in place else str(Path(place).expanduser().absolute()), base)
    if out is None:
        print_json({"out": None, "text": text}) if json else _say_lines(text)
        return
    target = out.absolute()
    if target.exists():
        raise OutputExistsError(f"{target} exists already. Give another --out, or remove it.")
    with disk_errors(target):
        write_atomically(target, text.encode())
    print_json({"out": str(target), "text": text}) if json else say(str(target))


def plan(
    file: File, only: Only = None, again: Again = False, store: opt.StoreOption = None, json: opt.JsonOption = False
) -> None:
    """Say what a run would do: what is up to date, what would be compressed, its bytes, memory and time.

    Exit code 2 where an entry cannot be worked on.

    Example: impart zoo plan zoo.yaml
    """
    request = _request(file, store, only, again)
    planned = plan_zoo(request, check_zoo(request, writing=False))
    show(planned, json, _print_plan)
    if any(entry.why for entry in planned.entries):
        raise typer.Exit(FAILED)


def run(
    file: File,
    only: Only = None,
    again: Again = False,
    runner: Runner = None,
    cluster: ClusterAddress = None,
    store: opt.StoreOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Bring every entry up to date; what fails stops none of the others, and gives exit code 2.

    A run that was stopped goes on where it was.

    Example: impart zoo run zoo.yaml --only math
    """
    request = _spread(_request(file, store, only, again), runner, cluster)
    check_runner(request.zoo, request.place)
    checked = check_zoo(request)
    with progress(quiet=json) as reporter, prefect_server(reporter):
        done = run_zoo_flow(request, checked, reporter)
    show(done, json, _print_run)
    if done.with_status("failed"):
        raise typer.Exit(FAILED)


def status(file: File, store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """Show what became of each entry in the last run.

    Example: impart zoo status zoo.yaml
    """
    show(_last(read_zoo_file(file), store), json, _print_run)


def report(file: File, out: Out = None, store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """Write the report of the last run: a page in HTML, Markdown or JSON.

    Example: impart zoo report zoo.yaml --out report.html
    """
    done = _last(read_zoo_file(file), store)
    writers: dict[str, Callable[[ZooRun], str]] = {
        ".html": html_report,
        ".md": markdown_report,
        ".json": lambda run: run.model_dump_json(),
    }
    if out is None:
        print_json(done.model_dump(mode="json")) if json else _say_lines(markdown_report(done))
        return
    if out.is_dir() or out.suffix not in writers:
        kind = OutputExistsError if out.is_dir() else ConfigError
        raise kind(f"{out} cannot be the report. --out takes the name of a file that ends in {', '.join(writers)}.")
    target = out.absolute()
    with disk_errors(target):
        write_atomically(target, writers[out.suffix](done).encode())
    print_json({"out": str(target), **done.model_dump(mode="json")}) if json else say(str(target))


def schema(json: opt.JsonOption = True) -> None:  # noqa: ARG001 - it is nothing but JSON
    """Print the JSON schema of zoo files, for editors.

    Example: impart zoo schema
    """
    print_json(ZooFile.model_json_schema())


def deploy(
    file: File, pool: Pool, queue: Queue = None, store: opt.StoreOption = None, json: opt.JsonOption = False
) -> None:
    """Deploy the zoo to a Prefect server: it is run by its schedule, by workers of a pool.

    The file becomes part of the deployment: deploy it again after a change.

    Example: impart zoo deploy zoo.yaml --pool models
    """
    request = _request(file, store)
    check_runner(request.zoo, request.place)
    check_zoo(request)
    show(deploy_zoo(request, pool, queue), json, _print_deployed)


def setup(gpus: Gpus = None, json: opt.JsonOption = False) -> None:
    """Prepare a Prefect server: it closes runs that a killed worker left, and shares out GPUs.

    At most --gpus runs of pools whose workers have IMPART_GPU_LIMIT=impart-gpu work at once; the others wait. Slots
    that no run can hold are freed.

    Example: impart zoo setup --gpus 4
    """
    show(prepare_server(gpus), json, _print_prepared)


def _print_prepared(made: Prepared) -> None:
    say(f"server    {made.server}")
    say(f"watchdog  runs without a sign of life for {made.silence_seconds:.0f} s are closed")
    if made.slots:
        say(f"limit     {made.slots.name}: {made.slots.limit} at once, {made.slots.held} at work now")


def _say_lines(text: str) -> None:
    for line in text.splitlines():
        say(line)


def _print_deployed(made: Deployed) -> None:
    when = f"{made.cron} ({made.timezone})" if made.cron else "only when asked for"
    say(f"deployment  {made.name}")
    say(f"pool        {made.pool}")
    say(f"runs        {when}")
    say(f"now         prefect deployment run {made.name}")


def _request(file: Path, store: str | None, only: list[str] | None = None, again: bool = False) -> ZooRequest:
    """Return the request; a store's folder becomes a whole path, for runs elsewhere."""
    place = None if store is None else absolute_store(store)
    return ZooRequest(zoo=read_zoo_file(file), store=place, only=tuple(only or ()), again=again)


def _spread(request: ZooRequest, runner: str | None, cluster: str | None) -> ZooRequest:
    """Return the request with what was typed in the place of what the file says."""
    if runner is None and cluster is None:
        return request
    asked = {"runner": runner or request.zoo.runner, "cluster": cluster or (None if runner else request.zoo.cluster)}
    Spread(**asked)  # refuses what does not go together
    return request.model_copy(update={"zoo": request.zoo.model_copy(update=asked)})


def _last(zoo: ZooFile, store: str | None) -> ZooRun:
    """Return the last run of a zoo."""
    opened = Store(ZooRequest(zoo=zoo, store=store).place)
    opened.require_there()
    found = last_zoo_run(opened, zoo.zoo)
    if found is None:
        raise ArtifactNotFoundError(
            f"The store {opened.url} has no run of the zoo {zoo.zoo!r} (no name {ref_of(zoo.zoo)}). Run it first: "
            "impart zoo run."
        )
    return found


def _print_plan(found: ZooPlan) -> None:
    print_table(*found.table())
    say()
    for line in found.lines():
        say(line)


def _print_run(done: ZooRun) -> None:
    print_table(*rows(done))
    for outcome, why in reasons(done):
        if outcome.status not in ("unchanged", "left out"):
            say()
            say(f"{outcome.name}: {why}")
    say()
    for line in (saved(done), *done.trouble, headline(done)):
        say(line)
