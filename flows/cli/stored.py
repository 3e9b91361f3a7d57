"""Verbs that look at a store as a whole: ls, and verify of one artifact or all."""

from typing import Annotated

import typer

from impart_core.base.errors import ConfigError
from impart_core.store.catalog import list_entries
from impart_core.store.names import resolve
from impart_core.store.store import Store
from impart_core.store.verify import VerifyReport, verify_store
from impart_core.store.verify import verify as verify_artifact
from impart_flows.cli import options as opt
from impart_flows.cli.output import human_bytes, print_json, print_table, progress, say
from impart_flows.cli.remaining import by_bytes

OptionalRef = Annotated[str | None, typer.Argument(help=opt.ARTIFACT)]
All = Annotated[bool, typer.Option("--all", help="Verify every artifact of the store instead of one.")]


def list_artifacts(store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """List the deltas and evaluations in a store, with their names.

    Example: impart ls --store s3://bucket/zoo
    """
    opened = Store(store)
    entries = list_entries(opened)
    if json:
        print_json({"store": opened.url, "artifacts": [entry.model_dump(mode="json") for entry in entries]})
        return
    if not entries:
        say(f"The store {opened.url} holds no artifacts yet.")
        return
    rows = [
        [", ".join(one.names) or "—", one.id[:12], one.kind, one.summary, human_bytes(one.bytes), one.started]
        for one in entries
    ]
    print_table(["name", "artifact", "kind", "what", "bytes", "made"], rows, title=opened.url)


def verify(
    ref: OptionalRef = None, every: All = False, store: opt.StoreOption = None, json: opt.JsonOption = False
) -> None:
    """Re-read every file of an artifact, or of all: sizes, digests, headers and codes.

    Exit code 1 when a fault is found. What a killed writer left beside artifacts is counted, and no fault.

    Example: impart verify math@cr16
    """
    if (ref is None) != every:
        raise ConfigError("Say what to verify: either an artifact (its name or id) or --all.")
    opened = Store(store)
    with progress(quiet=json) as reporter:
        if ref is None:
            what, report = opened.url, verify_store(opened, by_bytes(reporter, "verify"))
        else:
            artifact = resolve(opened, ref)
            what = artifact[:12]
            report = verify_artifact(opened, artifact, lambda done, total: reporter("verify", done, total, ""))
    if json:
        print_json({**report.model_dump(mode="json"), "ok": not report.faults})
    else:
        _print_report(what, report)
    if report.faults:
        raise typer.Exit(1)


def _print_report(what: str, report: VerifyReport) -> None:
    for fault in report.faults:
        say(f"fault: {fault}")
    count = len(report.faults)
    state = f"has {count} fault{'' if count == 1 else 's'}" if count else "is whole"
    names = "" if report.artifact else f", {report.names} names"
    say(f"{what} {state}: {report.artifacts} artifacts, {report.files} files, {report.bytes:,} bytes{names}")
    if report.leftovers:
        say(f"{report.leftovers} leftovers beside them, {human_bytes(report.leftover_bytes)}")
