"""Verbs that copy artifacts between stores: export and import."""

from impart_core.base.settings import Frozen
from impart_core.share.transfer import Record, TransferSettings, transfer
from impart_core.store.names import resolve
from impart_core.store.store import Store
from impart_flows.cli import options as opt
from impart_flows.cli.flags import from_flags
from impart_flows.cli.output import progress, show
from impart_flows.cli.remaining import by_bytes, print_transfer


class TransferRequest(Frozen):
    """Artifacts to copy, and what goes with them."""

    refs: tuple[str, ...]
    factors: bool = False
    evaluations: bool = True
    move_names: bool = False
    verify_cache: bool = False
    store: str


class ExportRequest(TransferRequest):
    """Artifacts to copy to another store."""

    to: str


class ImportRequest(TransferRequest):
    """Artifacts to copy from another store."""

    source_store: str


@from_flags(ExportRequest)
def export_artifacts(request: ExportRequest, json: opt.JsonOption = False) -> None:
    """Copy artifacts to another store, with their blocks, evaluations and names.

    What is there already is skipped, so an interrupted copy goes on where it stopped. Every file's digest is checked
    on the way.

    Example: impart export math@prod --to s3://bucket/zoo
    """
    _transfer("export", request, Store(request.store), Store(request.to), json)


@from_flags(ImportRequest)
def import_artifacts(request: ImportRequest, json: opt.JsonOption = False) -> None:
    """Copy artifacts from another store, or from a folder that `push-hub` made, into this one.

    Whoever made them may have published anything under their ids, so that compressions and evaluations do not reuse
    them without --trust-imported. What is here already is skipped, so an interrupted copy goes on where it stopped.
    Every file's digest is checked on the way.

    Example: impart import math@prod --from s3://bucket/zoo
    """
    _transfer("import", request, Store(request.source_store), Store(request.store), json)


def _transfer(verb: str, request: TransferRequest, source: Store, target: Store, json: bool) -> None:
    artifacts = [resolve(source, ref) for ref in request.refs]
    settings = TransferSettings(
        factors=request.factors,
        evaluations=request.evaluations,
        move_names=request.move_names,
        reread=request.verify_cache,
        record=Record.IMPORTED if verb == "import" else Record.MADE,
    )
    with progress(quiet=json) as reporter:
        report = transfer(source, target, artifacts, settings, by_bytes(reporter, verb))
    show(report, json, print_transfer)
