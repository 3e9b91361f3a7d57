"""What lies behind a URL: how it is opened, and a storage client's failures as sentences."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import fsspec

from impart_core.errors import CheckpointError, ConfigError, ImpartError, UnreachableError

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
# Failures of clients that need not be installed (botocore, aiohttp, httpx), known by the names of their bases.
_NETWORK = {
    "HTTPClientError",
    "ConnectionError",
    "IncompleteReadError",
    "TransportError",
    "ClientConnectionError",
    "ClientPayloadError",
}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
_REFUSED_CODES = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "InvalidToken"}
_CLOCK_CODES = {"RequestTimeTooSkewed", "RequestInTheFuture"}
_FULL_CODES = {"XMinioStorageFull", "InsufficientStorage", "QuotaExceeded", "StorageFull"}
_BUSY_CODES = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"}
_BUSY_CODES |= {"ConditionalRequestConflict", "IncompleteBody", "BadDigest"}
# s3fs gives these for an error without a name of its own, for 503 and for 500.
_BUSY_ERRNO = {errno.EIO, errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)}
_BUSY_STATUS = {408, 429, 500, 502, 503, 504}
_REFUSED_STATUS = {401, 403}
_FULL_STATUS = {507}
_LONGEST_REASON = 300


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
    core.set_custom_error_handler(lambda error: before(error) or _trouble(error) is Trouble.PASSING)


def extras_of(url: str) -> str | None:
    """Return what a URL carries more than a place, in a few words, or None: it would end in logs and lists of runs.

    Raises:
        ValueError: it is not a URL.
    """
    parts = urlsplit(url)
    extra = parts.password is not None or parts.query or parts.fragment
    return "a password, a query or a fragment" if extra else None


class Trouble(Enum):
    """What kind of failure a storage client met."""

    CLOCK = "the time of this machine is not the server's"
    REFUSED = "credentials that are missing, wrong, or not allowed to do this"
    ABSENT = "nothing there"
    PASSING = "no connection, a time-out, a server that is busy or failed: may pass by itself"
    FULL = "no space left"
    OTHER = "anything else"


@dataclass(frozen=True)
class Diagnosis:
    """A storage client's failure: its kind, and its own words in one line."""

    trouble: Trouble
    why: str


def diagnose(error: BaseException) -> Diagnosis:
    """Return what a storage client's failure is, whichever client raised it."""
    why = (" ".join(str(error).split()) or type(error).__name__)[:_LONGEST_REASON].rstrip(".")
    return Diagnosis(_trouble(error), why)


def _trouble(error: BaseException) -> Trouble:
    names = {kind.__name__ for kind in type(error).__mro__}
    status, code = _answer(error)
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or status in _FULL_STATUS or code in _FULL_CODES:
        return Trouble.FULL
    if code in _BUSY_CODES:
        return Trouble.PASSING
    if code in _CLOCK_CODES:
        return Trouble.CLOCK
    refused = status in _REFUSED_STATUS or code in _REFUSED_CODES or names & _NO_CREDENTIALS
    if isinstance(error, PermissionError) or refused:
        return Trouble.REFUSED
    if isinstance(error, FileNotFoundError | NotADirectoryError) or status == 404:
        return Trouble.ABSENT
    passing = number in _BUSY_ERRNO or status in _BUSY_STATUS or names & _NETWORK
    return Trouble.PASSING if passing or isinstance(error, TimeoutError) else Trouble.OTHER


def _answer(error: BaseException) -> tuple[int | None, str | None]:
    """Return the status and the error code of the answer that led to a failure, where there was one."""
    for found in (error, error.__cause__):
        answer = getattr(found, "response", None)
        if isinstance(answer, dict):  # botocore's, which s3fs gives as the cause of its own
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(answer.get("Error", {}).get("Code"))
        if answer is not None:
            return getattr(answer, "status_code", None), None
    return getattr(error, "status", None), None


@contextmanager
def remote_errors(where: object) -> Iterator[None]:
    """Turn whatever a storage client raises while `where` is read into a sentence.

    Raises:
        UnreachableError: it may pass by itself: no connection, a time-out, a server that is busy or failed.
        CheckpointError: it does not exist, may not be read, or cannot be read.
    """
    try:
        yield
    except ImpartError:
        raise
    except Exception as error:
        raise explain(error, where) from error


def explain(error: Exception, where: object) -> CheckpointError:
    """Return a storage client's failure as a sentence; see `remote_errors`."""
    found = diagnose(error)
    match found.trouble:
        case Trouble.REFUSED:
            sentence = f"{where} may not be read: {found.why}. Check the credentials and what they may read."
        case Trouble.CLOCK:
            sentence = f"{where} may not be read: {found.why}. Set the clock of this machine, and try again."
        case Trouble.ABSENT:
            sentence = f"{where} does not exist, or is hidden from these credentials. Check its address."
        case Trouble.PASSING:
            return UnreachableError(
                f"{where} cannot be reached: {found.why}. Check its address and the network, and try again."
            )
        case _:
            sentence = f"{where} cannot be read: {found.why}."
    return CheckpointError(sentence)
