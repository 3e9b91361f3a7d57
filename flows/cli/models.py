"""Verbs that make or measure model folders: reconstruct and evaluate."""

from pathlib import Path
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
    from impart_tasks.resources import patiently, retried_in

    from impart_core.apply.dense import reconstruct as rebuild
    from impart_core.artifacts.delta import open_delta
    from impart_core.base.errors import ConfigError
    from impart_core.checkpoint.index import open_checkpoint
    from impart_core.store.names import resolve
    from impart_core.store.provenance import Stopwatch
    from impart_core.store.store import Store

    if max_shard_bytes < 1:
        raise ConfigError(f"--max-shard-bytes is {max_shard_bytes}; it must be at least 1.")
    watch, opened = Stopwatch(), Store(store)
    target = Path(out).absolute()
    delta = patiently("look for the delta", lambda: open_delta(opened, resolve(opened, ref)))
    with progress(quiet=json) as reporter:
        written = patiently(
            "reconstruct",
            lambda: rebuild(
                delta,
                open_checkpoint(base),
                target,
                overwrite=overwrite,
                max_shard_bytes=max_shard_bytes,
                progress=lambda done, total: reporter("reconstruct", done, total, ""),
            ),
        )
    retried = retried_in(None)
    if json:
        found = {"artifact": delta.manifest.id, "out": str(target), "bytes": written}
        again = [one.model_dump(mode="json") for one in retried]
        print_json({**found, "retried": again, "seconds": round(watch.seconds, 3)})
        return
    for one in retried:
        typer.echo(f"retried {one.what}, {one.times}×: {one.why}")
    typer.echo(f"{target}  {human_bytes(written)} of weights in {watch.seconds:.1f} s")


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
    from impart_flows.compress import absolute
    from impart_flows.embedded import prefect_server
    from impart_flows.evaluate import EvaluateRequest, check_evaluate
    from impart_flows.evaluate import evaluate as evaluate_flow
    from impart_flows.progress import listening

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
    check_evaluate(request)
    with progress(quiet=json) as reporter, listening(reporter), prefect_server():
        results = evaluate_flow(request)
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
