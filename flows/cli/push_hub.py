"""The verb `push-hub`: a delta → the folder of a Hub repository."""

from pathlib import Path

from impart_core.base.settings import Frozen
from impart_core.share.hub import prepare_folder, require_repo, upload
from impart_core.store.names import resolve
from impart_core.store.store import Store
from impart_flows.cli import options as opt
from impart_flows.cli.flags import from_flags
from impart_flows.cli.output import print_json, progress, say
from impart_flows.cli.remaining import by_bytes, print_transfer


class PushRequest(Frozen):
    """A delta to make a Hub repository of."""

    ref: str
    repo: str
    out: Path
    upload: bool = False
    private: bool = False
    store: str


@from_flags(PushRequest)
def push_hub(request: PushRequest, json: opt.JsonOption = False) -> None:
    """Make the folder of a Hugging Face Hub repository out of a delta: a store in itself, with a model card.

    The token is that of HF_TOKEN or of `hf auth login`. Manifests are published as they are: they tell who made the
    delta and on which machine.

    Example: impart push-hub math@prod --repo org/math-delta --out hub
    """
    require_repo(request.repo)
    store = Store(request.store)
    artifact = resolve(store, request.ref)
    with progress(quiet=json) as reporter:
        report = prepare_folder(store, artifact, request.repo, request.out, by_bytes(reporter, "push-hub"))
    address = upload(request.out, request.repo, private=request.private) if request.upload else None
    if json:
        found = {"artifact": artifact, "repo": request.repo, "out": str(request.out), "url": address}
        print_json({**found, **report.model_dump(mode="json", include={"copied", "skipped", "names", "seconds"})})
        return
    print_transfer(report)
    say(f"folder   {request.out}")
    say(f"hub      {address or f'not uploaded; add --upload to create {request.repo}'}")
