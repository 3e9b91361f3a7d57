"""The verb `demo`: the main job on the tiny zoo, from nothing to a table and a picture."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from impart_core.base.errors import ConfigError
from impart_core.base.files import disk_errors
from impart_core.base.numerics import resolve_device
from impart_core.store.store import Store, default_store_url
from impart_flows.cli import options as opt
from impart_flows.cli.output import human_seconds, print_table, progress, ratio, say, show
from impart_flows.demo import DemoReport, DemoRow, flow_of
from impart_flows.embedded import prefect_server
from impart_flows.picture import draw

Out = Annotated[Path, typer.Option(help="Where the table and the picture go.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Limit = Annotated[int | None, typer.Option(help="Only this many items of each task.")]


def demo(
    out: Out = Path("demo"),
    store: opt.StoreOption = None,
    device: Device = "auto",
    limit: Limit = None,
    json: opt.JsonOption = False,
) -> None:
    """Compress the tiny zoo's three fine-tunes at CR 4, 8, 16 and 32, rebuild them, and measure what was lost.

    Example: impart demo --out demo --limit 50
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"The limit is {limit}; it must be at least 1 item.")
    resolve_device(device)
    import_module("matplotlib")  # where it is missing, that is told before the work
    url = store or default_store_url()
    Store(url).require_writable()
    with progress(quiet=json) as reporter, prefect_server(reporter):
        report = flow_of(reporter)(store=url, device=device, limit=limit)
    out = out.absolute()
    with disk_errors(out):
        draw(report, out / "demo.png")
        (out / "demo.json").write_text(report.model_dump_json(indent=2) + "\n")
    show(report, json, lambda report: _print_report(report, out))


def _print_report(report: DemoReport, out: Path) -> None:
    columns = ["task", "model", "exact match", "answer loss", "bytes", "cr_projection", "cr_model"]
    print_table(columns, [_cells(row) for row in report.rows])
    reused, total = report.evaluations_reused, report.evaluations
    say()
    say(f"Exact match and answer loss (nats a token) on {report.items} test items each, ± standard error.")
    say(
        f"Reused from {report.store}: {report.compressions_reused} of {report.compressions} compressions, "
        f"{reused} of {total} evaluations. Took {human_seconds(report.seconds)}."
    )
    say(f"Picture: {out / 'demo.png'}   Figures: {out / 'demo.json'}")


def _cells(row: DemoRow) -> list[str]:
    return [
        row.task,
        row.model,
        f"{100 * row.exact_match[0]:.1f} ± {100 * (row.exact_match[1] or 0):.1f} %",
        f"{row.answer_loss[0]:.3f} ± {row.answer_loss[1] or 0:.3f}",
        "" if row.bytes is None else f"{row.bytes:,}",
        "" if row.cr is None else ratio(row.cr_projection),
        "" if row.cr_model is None else ratio(row.cr_model),
    ]
