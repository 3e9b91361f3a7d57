"""Verbs that make or measure model folders: reconstruct and evaluate."""

from typing import Annotated

import typer

from impart_flows.cli import options as opt
from impart_flows.cli.output import human_bytes, print_json, print_table, progress, warn_of_faults
from impart_flows.cli.trust import read_trust


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command()(reconstruct)
    app.command()(evaluate)


def reconstruct(
    ref: opt.Ref,
    base: opt.BaseOption,
    out: opt.Out,
    store: opt.StoreOption = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT when it holds files.")] = False,
    max_shard_bytes: Annotated[int, typer.Option(help="Largest weights file, in bytes.")] = 5_000_000_000,
    json: opt.JsonOption = False,
) -> None:
    """Rebuild a fine-tuned checkpoint from its base and an artifact, as an ordinary Hugging Face folder."""
    from impart_core.base.errors import ConfigError
    from impart_core.engine.reconstruct import reconstruct as rebuild
    from impart_core.engine.requests import ReconstructRequest
    from impart_core.store.store import default_store_url

    if max_shard_bytes < 1:
        raise ConfigError(f"--max-shard-bytes is {max_shard_bytes}; it must be at least 1.")
    request = ReconstructRequest(
        ref=ref,
        base=base,
        out=out,
        store=store or default_store_url(),
        overwrite=overwrite,
        max_shard_bytes=max_shard_bytes,
    )
    with progress(quiet=json) as reporter:
        made = rebuild(request, lambda done, total: reporter("reconstruct", done, total, ""))
    if json:
        found = {"artifact": made.artifact, "out": str(made.out), "bytes": made.bytes}
        again = [one.model_dump(mode="json") for one in made.retried]
        print_json({**found, "retried": again, "seconds": made.seconds})
        return
    for one in made.retried:
        typer.echo(f"retried {one.what}, {one.times}×: {one.why}")
    typer.echo(f"{made.out}  {human_bytes(made.bytes)} of weights in {made.seconds:.1f} s")


def evaluate(
    model_dir: Annotated[
        str, typer.Argument(help="A Hugging Face model folder; with --base, an artifact.", show_default=False)
    ],
    tasks: Annotated[
        str,
        typer.Option(
            help="lm-eval task names, separated by commas; tinyzoo_math, tinyzoo_code and tinyzoo_chat are built in.",
            show_default=False,
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="Measure an artifact: it is rebuilt from this base in scratch, and what was measured of it is kept "
            "with it. Folder, Hub id or fsspec URL.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    limit: Annotated[int | None, typer.Option(help="Only this many items of each task.", show_default=False)] = None,
    store: opt.StoreOption = None,
    device: opt.Device = "auto",
    verify_cache: opt.VerifyCache = False,
    refresh: opt.Refresh = False,
    json: opt.JsonOption = False,
) -> None:
    """Measure a model with lm-evaluation-harness; finished measurements are reused from the store."""
    from impart_core.base.errors import unknown_name
    from impart_core.store.store import default_store_url

    if split not in ("validation", "test"):
        raise unknown_name("split", split, ("validation", "test"))
    from impart_core.engine.evaluate import check_evaluate
    from impart_core.engine.requests import EvaluateRequest, absolute
    from impart_flows.embedded import prefect_server
    from impart_flows.evaluate import run_evaluate

    names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    request = EvaluateRequest(
        model=absolute(model_dir) if base is None else model_dir,
        base=None if base is None else absolute(base),
        tasks=names,
        split=split,
        limit=limit,
        store=store or default_store_url(),
        device=device,
        trust=read_trust(verify_cache, refresh, None),
    )
    model = check_evaluate(request)
    with progress(quiet=json) as reporter, prefect_server(reporter):
        results = run_evaluate(request, model, reporter)
    warn_of_faults(
        [result.fault for result in results if result.fault], [result.id for result in results if result.changed]
    )
    if json:
        print_json({"model": request.model, "results": [result.model_dump(mode="json") for result in results]})
        return
    rows = [
        [task, metric, f"{value:.4f}", "" if error is None else f"{error:.4f}", str(result.items[task])]
        for result in results
        for task, metrics in result.metrics.items()
        for metric, (value, error) in metrics.items()
    ]
    print_table(["task", "metric", "value", "standard error", "items"], rows)
