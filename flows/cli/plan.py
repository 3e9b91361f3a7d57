"""The verb `plan`: what a compression would take."""

from impart_core.base.numerics import default_workers
from impart_core.engine.foretell import foretell, notes_on
from impart_core.engine.plan import Plan, make_plan
from impart_core.engine.preflight import open_sides
from impart_core.engine.requests import PlanRequest
from impart_core.engine.residual import open_over
from impart_flows.cli import options as opt
from impart_flows.cli.flags import from_flags
from impart_flows.cli.output import human_bytes, print_table, ratio, say, show, warn


@from_flags(PlanRequest, without=("seed",))
def plan(request: PlanRequest, json: opt.JsonOption = False) -> None:
    """Say what a compression would take, from headers alone: bytes of each block, memory, both ratios.

    With --quality some layers are read and coded as well, to foretell what the model keeps.

    Example: impart plan BASE FINETUNED --cr 16
    """
    checkpoints = open_sides(request.base, request.finetuned)
    over = open_over(request)
    found = make_plan(*checkpoints, request.config, request.workers or default_workers(), over)
    if request.quality:
        quality = foretell(*checkpoints, request.config)
        notes = (*found.notes, *notes_on(quality, request.config))
        found = found.model_copy(update={"quality": quality, "notes": notes})
    warn(found.notes)
    show(found, json, lambda found: _print_plan(found, request.config.accounting == "bytes"))


def _print_plan(plan: Plan, exact: bool) -> None:
    sizes = ("dense_bytes", "projection_bytes", "kept_bytes", "peak_bytes")
    rows = [
        [block.name, str(block.tensors), *(human_bytes(getattr(block, size)) for size in sizes)]
        for block in plan.blocks
    ]
    print_table(["block", "tensors", "projections", "their codes", "the rest", "peak memory"], rows)
    say()
    if exact:
        say(f"cr_projection  at least {ratio(plan.cr_projection)}")
    say(f"cr_model       at least {ratio(plan.cr_model)}   (at most {human_bytes(plan.bytes)})")
    if plan.over_bytes:
        say(f"lossy delta    {human_bytes(plan.over_bytes)} of these, which are there already")
    if plan.factors_bytes:
        say(f"factors        at most {human_bytes(plan.factors_bytes)} beside it, unless --no-keep-factors")
    say(f"peak memory    about {human_bytes(plan.peak_bytes)} above the idle process, {plan.workers} workers")
    if plan.calibration_bytes:
        say(f"calibration    about {human_bytes(plan.calibration_bytes)} more, one layer at a time")
    if plan.sensitivity_bytes:
        say(f"sensitivity    about {human_bytes(plan.sensitivity_bytes)}, before and while blocks are coded")
    if plan.distil_bytes:
        say(f"distillation   about {human_bytes(plan.distil_bytes)}, after all blocks")
    if plan.quality:
        kept, error = plan.quality.kept, plan.quality.error
        say(f"share kept     about {kept:.3f} ± {error:.3f} of the gap in answer loss (foretold, not measured)")
