"""Verbs that make a delta: compress and quantize."""

from impart_core.engine.compress import CompressReport
from impart_core.engine.preflight import Checked, check_compress
from impart_core.engine.quantize import quantize_request
from impart_core.engine.requests import CompressRequest, QuantizeRequest, absolute
from impart_flows.cli import options as opt
from impart_flows.cli.flags import from_flags
from impart_flows.cli.output import (
    human_bytes,
    human_seconds,
    progress,
    ratio,
    say,
    shortened,
    show,
    warn,
    warn_of_faults,
)
from impart_flows.compress import run_compress
from impart_flows.embedded import prefect_server
from impart_tasks.cluster import check_runner


@from_flags(CompressRequest)
def compress(request: CompressRequest, json: opt.JsonOption = False) -> None:
    """Compress the delta between two checkpoints and publish it; blocks in the store are reused.

    Example: impart compress BASE FINETUNED --cr 16 --option beta=0.6 --name math@cr16
    """
    check_runner(request, request.store)
    places = {"base": absolute(request.base), "finetuned": absolute(request.finetuned)}
    request = request.model_copy(update=places)
    _run(request, check_compress(request), json)


@from_flags(
    QuantizeRequest,
    without=("keep_factors",),
    seed=opt.SEED_OF_REF,
    base=opt.BASE_MOVED,
    finetuned=opt.FINETUNED_MOVED,
)
def quantize(request: QuantizeRequest, json: opt.JsonOption = False) -> None:
    """Quantise a delta that was compressed before: the artifact is the one that `compress` makes of the same request.

    Checkpoints, embeddings and accounting are those of REF; factors that go deep enough are reused.

    Example: impart quantize math@cr16 --cr 64 --calibration tinyzoo:math
    """
    check_runner(request, request.store)
    _run(*quantize_request(request), json)


def _run(request: CompressRequest, checked: Checked, json: bool) -> None:
    """Run a compression with an embedded server unless there is another, and print its report."""
    with progress(quiet=json) as reporter, prefect_server(reporter):
        report = run_compress(request, checked, reporter)
    warn(report.notes)
    warn_of_faults(report.remade, report.changed)
    show(report, json, _print_report)


def _print_report(report: CompressReport) -> None:
    reused = f", {report.cached_blocks} reused" if report.cached_blocks else ""
    say(f"artifact       {report.artifact}" + (f" ({report.name})" if report.name else ""))
    say(f"cr_projection  {ratio(report.cr_projection)}   (projections, against 16 bits)")
    say(f"cr_model       {ratio(report.cr_model)}   (every byte, against the fine-tuned checkpoint)")
    say(f"bytes          {report.bytes:,} in {report.blocks} blocks{reused}")
    if report.saved_bytes:
        say(f"lossless       {report.saved_bytes:,} bytes saved by the entropy coder")
    if report.decompositions or report.reused_factors:
        fallbacks = f", {report.fallbacks} fallbacks" if report.fallbacks else ""
        say(f"decomposed     {report.decompositions} matrices{fallbacks}; {report.reused_factors} reused")
    if report.code:
        say(f"code           {shortened(report.code)}: carried, never run; reconstruct --with-code writes it")
    if report.left:
        say(f"left behind    {shortened(report.left)}")
    for again in report.retried:
        say(f"retried        {again.what}, {again.times}×: {again.why}")
    if report.events_sent or report.events_lost:
        lost = f", {report.events_lost} lost: the receiver did not take them" if report.events_lost else ""
        say(f"events         {report.events_sent} sent{lost}")
    say(f"took           {human_seconds(report.seconds)}, peak memory {human_bytes(report.peak_rss_bytes)}")
