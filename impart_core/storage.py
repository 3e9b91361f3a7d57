"""What lies behind a URL: the options that the environment gives fsspec, and its failures as sentences."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from impart_core.errors import CheckpointError, ConfigError, ImpartError, UnreachableError

OPTIONS_VARIABLE = "IMPART_STORE_OPTIONS"

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
# s3fs gives these for an error without a name of its own, for 503 and for 500.
_BUSY_ERRNO = {errno.EIO, errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)}
_BUSY_STATUS = {408, 429, 500, 502, 503, 504}
_REFUSED_STATUS = {401, 403}
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
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", None))
    why = (" ".join(str(error).split()) or type(error).__name__)[:_LONGEST_REASON].rstrip(".")
    if isinstance(error, PermissionError) or status in _REFUSED_STATUS or names & _NO_CREDENTIALS:
        return CheckpointError(f"{where} may not be read: {why}. Check the credentials and what they may read.")
    if isinstance(error, FileNotFoundError | NotADirectoryError) or status == 404:
        return CheckpointError(f"{where} does not exist, or is hidden from these credentials. Check its address.")
    if isinstance(error, OSError) and error.errno in _BUSY_ERRNO:
        return _unreachable(where, why)
    if isinstance(error, TimeoutError) or names & _NETWORK or status in _BUSY_STATUS:
        return _unreachable(where, why)
    return CheckpointError(f"{where} cannot be read: {why}.")


def _unreachable(where: object, why: str) -> UnreachableError:
    return UnreachableError(f"{where} cannot be reached: {why}. Check its address and the network, and try again.")
