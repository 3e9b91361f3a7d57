"""What lies behind a URL: how it is opened, with which options, and what a URL may not carry."""

import json
import os
import re
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import fsspec

from impart_core.base.errors import ConfigError, ImpartError
from impart_core.base.text import names_container
from impart_core.storage.failures import Trouble, trouble_of

_LINK = re.compile(r"(?P<scheme>[\w+.-]*)://(?P<user>[^/]*)@")
_ARCHIVES = ("zip", "tar", "libarchive")  # filesystems in a file, which is the next link of the chain
OPTIONS_VARIABLE = "IMPART_STORE_OPTIONS"

# A server that stalls is given up early: what is worth trying again is tried again by s3fs and by the pipeline, so
# that botocore's own attempts, which multiply with theirs, are left out. Listings are always asked for anew.
_S3_DEFAULTS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 20,
        "max_pool_connections": 64,
        "retries": {"mode": "standard", "total_max_attempts": 1},
    },
}


def storage_options() -> dict[str, Any]:
    """Return the fsspec storage options in IMPART_STORE_OPTIONS, a JSON object; none when it is not set.

    Raises:
        ConfigError: it is something else. The message does not repeat it, for it may hold a secret.
    """
    text = os.environ.get(OPTIONS_VARIABLE)
    if not text:
        return {}
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise ConfigError(
            f"{OPTIONS_VARIABLE} is not a JSON object. Give fsspec's storage options in it, "
            'for example {"endpoint_url": "https://s3.example.org"}, or unset it.'
        )
    return options


def open_url(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL, with IMPART_STORE_OPTIONS, and the path in it.

    Raises:
        ValueError, ImportError, TypeError: the protocol is not known or not installed, or an option is unknown.
        ConfigError: IMPART_STORE_OPTIONS is malformed.
    """
    options = storage_options()
    if url.partition("://")[0] in ("s3", "s3a"):
        own = options.get("config_kwargs")
        merged = {**_S3_DEFAULTS["config_kwargs"], **(own if isinstance(own, dict) else {})}
        options = {**_S3_DEFAULTS, **options, "config_kwargs": merged}
        _retry_what_passes()
    fs, path = fsspec.core.url_to_fs(url, **options)
    return fs, str(path).rstrip("/")


@cache
def _retry_what_passes() -> None:
    """Let s3fs try again by itself what may pass: left alone it gives up at the first 500.

    A task that makes dozens of requests would hardly ever get through where a tenth of them fail.
    """
    from s3fs import core

    before = core.CUSTOM_ERROR_HANDLER
    core.set_custom_error_handler(lambda error: before(error) or trouble_of(error) is Trouble.PASSING)


def require_plain_url(url: str, whose: str, kind: type[ImpartError]) -> None:
    """Refuse a URL that carries more than a place: it would end in manifests, logs and lists of runs.

    Args:
        url: the URL; each link of a chain (`simplecache::http://…`) is looked at.
        whose: what lies there, for the sentence ("checkpoint").
        kind: the error to raise.

    Raises:
        ImpartError: of this kind. The message does not repeat the URL, for it may hold a secret.
    """
    try:
        for link in url.split("::"):
            urlsplit(link)
    except ValueError:
        raise kind(f"The {whose}'s address is not a valid URL. Give a folder or a URL such as s3://…") from None
    users = [found for found in _LINK.finditer(url) if not names_container(found["scheme"], found["user"])]
    if users or "?" in url or "#" in url:
        scheme = url.partition("://")[0].rpartition("::")[2]
        raise kind(
            f"The {whose}'s {scheme if scheme.isalnum() else ''}:// URL carries a password, a user name, a query or "
            "a fragment. Give the place alone; credentials come from the environment (AWS_PROFILE and its like, or "
            f"{OPTIONS_VARIABLE})."
        )
    last = url.rpartition("::")[2].partition("://")[0]
    if last in _ARCHIVES:
        raise kind(
            f"The {whose} {url!r} names no archive. Write {last}://FOLDER::ARCHIVE, such as "
            f"{last}://model::s3://bucket/model.{last}."
        )
