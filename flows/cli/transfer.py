"""Verbs that carry artifacts between stores and to the Hub: export, import and push-hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from impart_flows.cli import options as opt
from impart_flows.cli.output import human_bytes, print_json, progress
from impart_flows.cli.remaining import by_bytes

if TYPE_CHECKING:
    from impart_core.share.transfer import Tally, TransferReport

Refs = Annotated[
    list[str],
    typer.Argument(
        metavar="REF...",
        help="Artifacts: names, ids, or the first six or more digits of ids.",
        show_default=False,
    ),
]
WithFactors = Annotated[
    bool, typer.Option("--factors", help="Copy the decompositions that blocks were made from as well.")
]
WithEvaluations = Annotated[
    bool, typer.Option("--evaluations/--no-evaluations", help="Copy the evaluations that measured a delta as well.")
]
MoveNames = Annotated[
    bool, typer.Option("--move-names", help="Move a name that points elsewhere in the store that is written.")
]
Reread = Annotated[
    bool,
    typer.Option("--verify-cache", help="Read what is there already, too, and replace what has another digest."),
]


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command("export")(export_artifacts)
    app.command("import")(import_artifacts)
    app.command("push-hub")(push_hub)


def export_artifacts(
    refs: Refs,
    to: Annotated[str, typer.Option("--to", help="The store to copy to. Folder or fsspec URL.", show_default=False)],
    factors: WithFactors = False,
    evaluations: WithEvaluations = True,
    move_names: MoveNames = False,
    verify_cache: Reread = False,
    store: opt.StoreOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Copy artifacts to another store, with their blocks, evaluations and names.

    What is there already is skipped, so an interrupted copy goes on where it stopped. Every file's digest is checked
    on the way.
    """
    _transfer("export", store, to, refs, factors, evaluations, move_names, verify_cache, json)


def import_artifacts(
    refs: Refs,
    source: Annotated[
        str, typer.Option("--from", help="The store to copy from. Folder or fsspec URL.", show_default=False)
    ],
    factors: WithFactors = False,
    evaluations: WithEvaluations = True,
    move_names: MoveNames = False,
    verify_cache: Reread = False,
    store: opt.StoreOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Copy artifacts from another store, or from a folder that `push-hub` made, into this one.

    What is here already is skipped, so an interrupted copy goes on where it stopped. Every file's digest is checked
    on the way.
    """
    _transfer("import", source, store, refs, factors, evaluations, move_names, verify_cache, json)


def push_hub(
    ref: opt.Ref,
    repo: Annotated[str, typer.Option("--repo", help="The Hub repository (org/name).", show_default=False)],
    out: opt.Out,
    upload: Annotated[bool, typer.Option("--upload", help="Upload the folder; without this, no network is used.")] = (
        False
    ),
    private: Annotated[bool, typer.Option("--private", help="Create the repository as a private one.")] = False,
    store: opt.StoreOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Make the folder of a Hugging Face Hub repository out of a delta: a store in itself, with a model card.

    The token is that of HF_TOKEN or of `hf auth login`. Manifests are published as they are: they tell who made the
    delta and on which machine.
    """
    from impart_core.share.hub import prepare_folder, require_repo
    from impart_core.share.hub import upload as upload_folder
    from impart_core.store.names import resolve
    from impart_core.store.store import Store

    require_repo(repo)
    opened, folder = Store(store), Path(out).absolute()
    artifact = resolve(opened, ref)
    with progress(quiet=json) as reporter:
        report = prepare_folder(opened, artifact, repo, folder, by_bytes(reporter, "push-hub"))
    address = upload_folder(folder, repo, private=private) if upload else None
    if json:
        found = {"artifact": artifact, "repo": repo, "out": str(folder), "url": address}
        print_json({**found, **report.model_dump(mode="json", include={"copied", "skipped", "names", "seconds"})})
        return
    _print_report(report)
    typer.echo(f"folder   {folder}")
    typer.echo(f"hub      {address or f'not uploaded; add --upload to create {repo}'}")


def _transfer(
    verb: str,
    source: str | None,
    target: str | None,
    refs: list[str],
    factors: bool,
    evaluations: bool,
    move_names: bool,
    reread: bool,
    json: bool,
) -> None:
    from impart_core.share.transfer import transfer
    from impart_core.store.names import resolve
    from impart_core.store.store import Store

    opened, written = Store(source), Store(target)
    artifacts = [resolve(opened, ref) for ref in refs]
    with progress(quiet=json) as reporter:
        report = transfer(
            opened,
            written,
            artifacts,
            factors=factors,
            evaluations=evaluations,
            move_names=move_names,
            reread=reread,
            progress=by_bytes(reporter, verb),
        )
    if json:
        print_json(report.model_dump(mode="json"))
        return
    _print_report(report)


def _print_report(report: "TransferReport") -> None:
    typer.echo(f"copied   {_told(report.copied)}")
    typer.echo(f"skipped  {_told(report.skipped)}")
    if report.otherwise:
        typer.echo(f"kept     {len(report.otherwise)} of these as they were made there, with other bytes")
    if report.names:
        typer.echo(f"names    {', '.join(sorted(report.names))}")
    typer.echo(f"took     {report.seconds:.1f} s")


def _told(tally: "Tally") -> str:
    if not tally.artifacts:
        return "nothing"
    kinds = [
        f"{count} {kind if count == 1 or kind.endswith('s') else f'{kind}s'}" for kind, count in tally.artifacts.items()
    ]
    return f"{', '.join(kinds)}: {human_bytes(tally.bytes)} in {tally.files} files"
