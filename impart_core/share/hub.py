"""A delta as a repository of the Hugging Face Hub: a folder that is a store in itself, with a model card."""

import re
import shutil
from pathlib import Path

from impart_core.artifacts.delta import Delta, open_delta
from impart_core.base.errors import ConfigError, HubError, OutputExistsError
from impart_core.base.files import disk_errors, write_atomically
from impart_core.checkpoint.hub import parse_hub_id
from impart_core.share.card import Measured, model_card
from impart_core.share.transfer import Progress, Record, TransferReport, TransferSettings, transfer
from impart_core.storage.failures import LOG_IN, Side, explained
from impart_core.storage.objects import PROBES
from impart_core.store.catalog import CatalogEntry, scan
from impart_core.store.claims import CLAIMS
from impart_core.store.manifest import MANIFEST, Manifest
from impart_core.store.names import names_by_id
from impart_core.store.store import Store

CARD = "README.md"
_OURS = {"artifacts", "catalog", "refs", CARD}
_OF_RUNS = {"pins", "sweeps", CLAIMS, PROBES}  # what a killed one leaves besides
_SCRATCH = re.compile(rf"\.{re.escape(CARD)}\.[0-9a-f]{{32}}\.tmp")


def require_repo(repo: str) -> str:
    """Return a repository's id.

    Raises:
        ConfigError: it is not `org/name`.
    """
    found = parse_hub_id(repo)
    if found is None or found.repo != repo:
        raise ConfigError(f"{repo!r} names no repository of the Hub. Give org/name.")
    return repo


def prepare_folder(
    store: Store, artifact_id: str, repo: str, out: Path, progress: Progress | None = None
) -> TransferReport:
    """Make the folder of a Hub repository: the delta, its blocks, its evaluations and names, and a model card.

    Its manifests tell neither the user nor where inputs lay, unless that is public; ids are the same. The card is
    written last. A folder that an earlier attempt at the same left is gone on with.

    Args:
        store: where the delta is.
        artifact_id: which delta.
        repo: the repository (`org/name`).
        out: the folder to make.
        progress: as in `transfer`.

    Raises:
        ConfigError: the artifact is no delta, or `repo` no repository's id.
        OutputExistsError: `out` holds anything else.
        CorruptArtifactError: something of the delta is damaged.
    """
    require_repo(repo)
    delta = open_delta(store, artifact_id)
    _require_ours(out, delta)
    made = Store(out)
    _make_public(made)
    settings = TransferSettings(move_names=True, record=Record.PUBLIC)
    report = transfer(store, made, [artifact_id], settings, progress)
    name = names_by_id(made).get(artifact_id, (artifact_id,))[0]
    sources = delta.manifest.provenance.sources
    card = model_card(open_delta(made, artifact_id), repo, name, measurements(store, delta), sources)
    with disk_errors(out):
        write_atomically(out / CARD, card.encode())
        for path in (*map(out.joinpath, sorted(_OF_RUNS)), *out.rglob("*.tmp")):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return report


def _make_public(made: Store) -> None:
    """Leave out of what an earlier version copied here what strangers need not know."""
    for artifact_id, manifest in made.manifests(made.ids()):
        public = manifest and manifest.with_provenance(manifest.provenance.public())
        if manifest and public and public != manifest:
            made.objects.replace(f"artifacts/{artifact_id}/{MANIFEST}", public.to_json(), manifest.to_json())


def measurements(store: Store, delta: Delta) -> Measured:
    """Return a store's evaluations of a delta, of its base and of the model that it was made from."""
    found = [entry for entry in scan(store).values() if entry.kind == "evaluation"]
    base, finetuned = delta.content.base, delta.content.finetuned
    return Measured(
        base=_read(store, [entry for entry in found if entry.checkpoints.get("checkpoint") == base]),
        finetuned=_read(store, [entry for entry in found if entry.checkpoints.get("checkpoint") == finetuned]),
        delta=_read(store, [entry for entry in found if delta.manifest.id in entry.parents]),
    )


def _read(store: Store, entries: list[CatalogEntry]) -> list[Manifest]:
    ordered = sorted(entries, key=lambda entry: (entry.started, entry.id))
    found = dict(store.manifests(entry.id for entry in ordered))
    return [manifest for entry in ordered if (manifest := found.get(entry.id))]


def _require_ours(out: Path, delta: Delta) -> None:
    """Refuse a folder that holds other things than this delta: they would be published with it."""
    if not out.exists():
        return
    held = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    place = out / "artifacts"
    artifacts = {path.name for path in place.iterdir()} if place.is_dir() else set()
    known = {delta.manifest.id, *(pointer.id for pointer in delta.content.pointers())}
    known |= {manifest.id for manifest in measurements(delta.store, delta).delta}
    strange = {name for name in held - _OURS - _OF_RUNS if not _SCRATCH.fullmatch(name)}
    card_of_others = CARD in held and not artifacts  # ours is written last
    if strange or card_of_others or artifacts - known:
        raise OutputExistsError(
            f"{out} already holds other things than the delta {delta.manifest.id[:12]}, which would be published with "
            "it. Choose another folder, or empty this one."
        )


def upload(folder: Path, repo: str, *, private: bool = False) -> str:
    """Create a repository, unless there is one, and upload a prepared folder to it; return its address.

    Raises:
        ConfigError: huggingface_hub is not installed, or the repository is public and a private one was asked for.
        HubError: there is no token, the Hub refuses it, or it does not answer.
    """
    try:
        from huggingface_hub import HfApi, get_token
    except ImportError as error:
        raise ConfigError(
            "Uploading takes huggingface_hub, which is not installed. Install it (`pip install 'impart-zoo[hub]'`), or "
            "upload the folder by other means."
        ) from error
    with explained(Side.UPLOAD, repo):
        if not get_token():
            raise HubError(f"There is no token to upload to the Hub's {repo} with. {LOG_IN}.")
        api = HfApi()
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo, expand=["private"]).private:
            raise ConfigError(
                f"The Hub's {repo} exists and is public, and a private one was asked for. Nothing was uploaded. Make "
                "it private in its settings, or choose another name."
            )
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Upload a compressed delta",
            allow_patterns=[CARD, "artifacts/*", "catalog/*", "refs/*"],
            ignore_patterns=["*.tmp"],  # of a writer that was killed
        )
    return str(address)
