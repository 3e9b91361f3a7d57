"""Checkpoints on the Hugging Face Hub, pinned to a commit and read by byte ranges only."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from impart_core.base.errors import CheckpointError, ConfigError, ImpartError
from impart_core.checkpoint.remote import RemoteFile
from impart_core.checkpoint.source import Folder
from impart_core.storage.failures import Side, explain

SCHEME = "hf://"
_PART = r"\w[\w.-]{0,95}"
_ID = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[^\s@]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubId:
    """A model on the Hub (`org/name`) and one of its revisions: a branch, a tag or a commit; None for its default."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        """Return its location."""
        return f"{SCHEME}{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class HubFile(RemoteFile):
    """A file of a model at one commit, and the address that it is fetched from."""

    model: HubId
    url: str

    def fetch(self, start: int, end: int) -> bytes:
        """Ask the Hub for a range."""
        with _hub_errors(self.model):
            from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
            from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

            # Compressed, a range would be one of the compressed bytes.
            headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
            response = http_backoff("GET", self.url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT)
            hf_raise_for_status(response)
            return response.content


def parse_hub_id(text: str) -> HubId | None:
    """Return the model that `org/name`, `org/name@revision` or one with `hf://` names; None for anything else."""
    found = _ID.fullmatch(text.removeprefix(SCHEME))
    return HubId(found["repo"], found["revision"]) if found else None


def hub_folder(wanted: HubId, inside: str | None = None) -> Folder:
    """List a model's files at one commit; the folder's location names the commit.

    Args:
        wanted: the model.
        inside: a folder of it to list; None: its top.

    Raises:
        CheckpointError: the model or its revision does not exist, is gated, or the Hub does not answer.
        ConfigError: huggingface_hub is not installed.
    """
    with _hub_errors(wanted):
        from huggingface_hub import HfApi, hf_hub_url
        from huggingface_hub.hf_api import RepoFile

        pinned = HubId(wanted.repo, _commit(wanted))
        entries: dict[str, HubFile | None] = {}
        for found in HfApi().list_repo_tree(pinned.repo, inside, revision=pinned.revision):
            name = found.path.rpartition("/")[2]
            entries[name] = None
            if isinstance(found, RepoFile):
                url = hf_hub_url(pinned.repo, found.path, revision=pinned.revision)
                location = f"{pinned}/{found.path}"
                entries[name] = HubFile(location, found.size, found.blob_id, pinned, url)
        return Folder(f"{pinned}/{inside}" if inside else str(pinned), dict(sorted(entries.items())))


def hub_models(owner: str) -> list[str]:
    """Return the names of an organisation's or a user's models, sorted.

    Raises:
        CheckpointError: the Hub does not answer.
        ConfigError: huggingface_hub is not installed.
    """
    with _hub_errors(HubId(f"{owner}/*")):
        from huggingface_hub import HfApi

        return sorted(found.id.rpartition("/")[2] for found in HfApi().list_models(author=owner))


def _commit(wanted: HubId) -> str:
    """Return the commit that a revision stands for now; a commit is not asked for."""
    if wanted.revision and _COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    found = HfApi().model_info(wanted.repo, revision=wanted.revision, expand=["sha"], timeout=HF_HUB_ETAG_TIMEOUT)
    if not found.sha or not _COMMIT.fullmatch(found.sha):
        raise CheckpointError(f"The Hub names no commit for {wanted} (it says {found.sha!r}). Give one after an @.")
    return found.sha


@contextmanager
def _hub_errors(wanted: HubId) -> Iterator[None]:
    try:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise ConfigError(f"{wanted} is on the Hub: install huggingface_hub to read it, or give a folder.") from error
    try:
        yield
    except ImpartError:
        raise
    except GatedRepoError as error:
        raise CheckpointError(
            f"The Hub's {wanted.repo} is gated. Ask for access on its page, then log in with `hf auth login` "
            "or set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no model {wanted.repo} on the Hub, or it is private. Check the id; for a private model log in "
            "with `hf auth login` or set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"The Hub's {wanted.repo} has no revision {wanted.revision!r}. Give a branch, a tag or a commit of it."
        ) from error
    except Exception as error:
        raise explain(error, Side.CHECKPOINT, f"The Hub's {wanted.repo}") from error
