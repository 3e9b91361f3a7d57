"""Verbs that work on a base and a fine-tuned checkpoint: compress, quantize and plan."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from impart_flows.cli import options as opt
from impart_flows.cli.method import MethodCommand, QuantizeCommand, read_config
from impart_flows.cli.output import human_bytes, print_json, print_table, progress, ratio, warn_of_faults
from impart_flows.cli.trust import read_trust

if TYPE_CHECKING:
    from impart_core.calibrate.text import CalibrationText
    from impart_core.engine.requests import CompressRequest


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command(cls=MethodCommand)(compress)
    app.command(cls=QuantizeCommand)(quantize)
    app.command(cls=MethodCommand)(plan)


def compress(
    base: opt.Base,
    finetuned: opt.Finetuned,
    cr: opt.Ratio,
    method: opt.Method = "impart",
    beta: opt.Beta = None,
    c: opt.Exponent = None,
    option: opt.MethodOption = None,
    seed: opt.Seed = 0,
    accounting: opt.AccountingOption = "bytes",
    embeddings: opt.Embeddings = "keep",
    embeddings_cr: opt.EmbeddingsRatio = None,
    factors_for: opt.FactorsFor = None,
    keep_factors: Annotated[
        bool,
        typer.Option(
            help="Publish each block's decomposition too, so that another ratio or method does not repeat it."
        ),
    ] = True,
    store: opt.StoreOption = None,
    name: opt.ArtifactName = None,
    calibration: opt.Calibration = None,
    calibration_sequences: opt.CalibrationSequences = None,
    calibration_length: opt.CalibrationLength = None,
    device: opt.Device = "auto",
    workers: opt.Workers = None,
    verify_cache: opt.VerifyCache = False,
    refresh: opt.Refresh = False,
    refresh_from: opt.RefreshFrom = None,
    json: opt.JsonOption = False,
) -> None:
    """Compress the delta between two checkpoints and publish it as an artifact.

    The work runs as a Prefect flow, one task a block (a decoder layer). Blocks that the store already holds
    are reused, so an interrupted run goes on where it stopped. Methods that quantise by calibration do one layer after
    the other, each on what the layers before it give.
    """
    others = {"embeddings": embeddings, "embeddings_cr": embeddings_cr, "factors_for": factors_for}
    config = read_config(method, cr, seed, accounting, {"beta": beta, "c": c}, option or (), **others)
    from impart_core.engine.requests import CompressRequest, absolute
    from impart_core.store.store import default_store_url

    require_workers(workers)
    request = CompressRequest(
        base=absolute(base),
        finetuned=absolute(finetuned),
        config=config,
        store=store or default_store_url(),
        name=name,
        device=device,
        workers=workers,
        keep_factors=keep_factors,
        calibration=read_calibration(calibration, calibration_sequences, calibration_length),
        trust=read_trust(verify_cache, refresh, refresh_from),
    )
    run(request, json)


def quantize(
    ref: opt.Ref,
    cr: opt.Ratio,
    method: opt.Method = "impart-qt",
    option: opt.MethodOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the masks. [default: that of REF]", show_default=False)
    ] = None,
    calibration: opt.Calibration = None,
    calibration_sequences: opt.CalibrationSequences = None,
    calibration_length: opt.CalibrationLength = None,
    base: Annotated[
        str | None, typer.Option(help="The base, where it has moved since REF was made.", show_default=False)
    ] = None,
    finetuned: Annotated[
        str | None,
        typer.Option(help="The fine-tuned checkpoint, where it has moved since REF was made.", show_default=False),
    ] = None,
    store: opt.StoreOption = None,
    name: opt.ArtifactName = None,
    device: opt.Device = "auto",
    workers: opt.Workers = None,
    verify_cache: opt.VerifyCache = False,
    refresh: opt.Refresh = False,
    refresh_from: opt.RefreshFrom = None,
    json: opt.JsonOption = False,
) -> None:
    """Quantise a delta that was compressed before, from the factors that are kept with it.

    What it is made of, how embeddings are coded and how bytes are counted is as for REF. The artifact is the one that
    `compress` makes of the same request; factors that go deep enough for it are reused.
    """
    from impart_core.engine.quantize import quantize_request
    from impart_core.engine.requests import QuantizeRequest
    from impart_core.store.store import default_store_url
    from impart_flows.cli.method import read_options

    require_workers(workers)
    request, checked = quantize_request(
        QuantizeRequest(
            ref=ref,
            method=method,
            cr=cr,
            seed=seed,
            options=read_options({}, option or ()),
            base=base,
            finetuned=finetuned,
            store=store or default_store_url(),
            name=name,
            device=device,
            workers=workers,
            calibration=read_calibration(calibration, calibration_sequences, calibration_length),
            trust=read_trust(verify_cache, refresh, refresh_from),
        )
    )
    run(request, json, checked)


def read_calibration(source: str | None, sequences: int | None, length: int | None) -> "CalibrationText | None":
    """Return calibration text from its flags, None where there is none.

    Raises:
        ConfigError: a number is wrong, or is of no text.
    """
    from impart_core.base.errors import ConfigError
    from impart_core.base.settings import build_config
    from impart_core.calibrate.text import CalibrationText

    given = {key: value for key, value in {"sequences": sequences, "length": length}.items() if value is not None}
    if source is not None:
        return build_config(CalibrationText, source=source, **given)
    if given:
        flags = " and ".join(f"--calibration-{key}" for key in given)
        raise ConfigError(f"{flags} is given, but no text. Name it with --calibration, or leave the number out.")
    return None


def run(request: "CompressRequest", json: bool, checked: Any = None) -> None:
    """Check a compression, run it with an embedded server unless there is another, and print its report."""
    from impart_core.engine.preflight import check_compress
    from impart_flows.compress import run_compress
    from impart_flows.embedded import prefect_server

    checked = checked or check_compress(request)
    with progress(quiet=json) as reporter, prefect_server(reporter):
        report = run_compress(request, checked, reporter)
    warn_of_faults(report.remade, report.changed)
    if json:
        print_json(report.model_dump(mode="json"))
        return
    reused = f", {report.cached_blocks} reused" if report.cached_blocks else ""
    typer.echo(f"artifact       {report.artifact}" + (f" ({report.name})" if report.name else ""))
    typer.echo(f"cr_projection  {ratio(report.cr_projection)}   (projections, against 16 bits)")
    typer.echo(f"cr_model       {ratio(report.cr_model)}   (every byte, against the fine-tuned checkpoint)")
    typer.echo(f"bytes          {report.bytes:,} in {report.blocks} blocks{reused}")
    if report.saved_bytes:
        typer.echo(f"lossless       {report.saved_bytes:,} bytes saved by the entropy coder")
    if report.decompositions or report.reused_factors:
        fallbacks = f", {report.fallbacks} fallbacks" if report.fallbacks else ""
        typer.echo(f"decomposed     {report.decompositions} matrices{fallbacks}; {report.reused_factors} reused")
    for again in report.retried:
        typer.echo(f"retried        {again.what}, {again.times}×: {again.why}")
    if report.events_sent or report.events_lost:
        lost = f", {report.events_lost} lost: the receiver did not take them" if report.events_lost else ""
        typer.echo(f"events         {report.events_sent} sent{lost}")
    typer.echo(f"took           {report.seconds:.1f} s, peak memory {human_bytes(report.peak_rss_bytes)}")


def plan(
    base: opt.Base,
    finetuned: opt.Finetuned,
    cr: opt.Ratio,
    method: opt.Method = "impart",
    beta: opt.Beta = None,
    c: opt.Exponent = None,
    option: opt.MethodOption = None,
    accounting: opt.AccountingOption = "bytes",
    embeddings: opt.Embeddings = "keep",
    embeddings_cr: opt.EmbeddingsRatio = None,
    factors_for: opt.FactorsFor = None,
    workers: opt.Workers = None,
    json: opt.JsonOption = False,
) -> None:
    """Say what a compression would take, from headers alone: bytes of each block, memory, both ratios."""
    others = {"embeddings": embeddings, "embeddings_cr": embeddings_cr, "factors_for": factors_for}
    config = read_config(method, cr, 0, accounting, {"beta": beta, "c": c}, option or (), **others)
    from impart_core.base.numerics import default_workers
    from impart_core.checkpoint.index import open_checkpoint
    from impart_core.engine.plan import make_plan

    require_workers(workers)
    made = make_plan(open_checkpoint(base), open_checkpoint(finetuned), config, workers or default_workers())
    if json:
        print_json(made.model_dump(mode="json"))
        return
    rows = [
        [
            block.name,
            str(block.tensors),
            human_bytes(block.dense_bytes),
            human_bytes(block.projection_bytes),
            human_bytes(block.kept_bytes),
            human_bytes(block.peak_bytes),
        ]
        for block in made.blocks
    ]
    print_table(["block", "tensors", "projections", "their codes", "the rest", "peak memory"], rows)
    typer.echo(f"\ncr_projection  at least {ratio(made.cr_projection)}" if accounting == "bytes" else "")
    typer.echo(f"cr_model       about {ratio(made.cr_model)} or better   ({human_bytes(made.bytes)})")
    if made.factors_bytes:
        typer.echo(f"factors        at most {human_bytes(made.factors_bytes)} beside it, unless --no-keep-factors")
    typer.echo(f"peak memory    about {human_bytes(made.peak_bytes)} above the idle process, {made.workers} workers")
    if made.calibration_bytes:
        typer.echo(f"calibration    about {human_bytes(made.calibration_bytes)} more, one layer at a time")


def require_workers(workers: int | None) -> None:
    """Refuse a worker count below 1."""
    from impart_core.base.errors import ConfigError

    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is {workers}; it must be at least 1.")
