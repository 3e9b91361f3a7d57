"""Failures of storage clients and of the operating system, in one table: trouble → error and sentence.

A store, a checkpoint and an upload to the Hub meet the same troubles; what the user is told to do differs.
"""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum

from impart_core.base.errors import (
    CheckpointError,
    HubError,
    ImpartError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreUnreachableError,
    UnreachableError,
)
from impart_core.base.text import without_secrets

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
_OF_PLACES = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EROFS)
_LONGEST_REASON = 300


class Trouble(Enum):
    """What kind of failure a storage client met."""

    CLOCK = "the time of this machine is not the server's"
    REFUSED = "credentials that are missing, wrong, or not allowed to do this"
    ABSENT = "nothing there"
    PASSING = "no connection, a time-out, a server that is busy or failed: may pass by itself"
    FULL = "no space left"
    OTHER = "anything else"


def trouble_of(error: BaseException) -> Trouble:
    """Return what kind of failure a client or the operating system met."""
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


class Side(Enum):
    """Who met the failure."""

    STORE = "a store that is read or written"
    CHECKPOINT = "a checkpoint that is read"
    UPLOAD = "a repository of the Hub that is written"


_KEPT = "what was published is kept"
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
# Where a trouble is not listed, `OTHER` holds.
_SENTENCES: Mapping[Side, Mapping[Trouble, tuple[type[ImpartError], str]]] = {
    Side.STORE: {
        Trouble.REFUSED: (
            StoreDeniedError,
            "The store {where} refuses this: {why}. Check the credentials and what they allow; "
            f"{_KEPT}, and the same command goes on from there.",
        ),
        Trouble.CLOCK: (
            StoreDeniedError,
            "The store {where} refuses this: {why}. Set the clock of this machine, and run the same command again: "
            f"{_KEPT}.",
        ),
        Trouble.PASSING: (
            StoreUnreachableError,
            "The store {where} cannot be reached: {why}. Check its address and the network, and run the same command "
            f"again: {_KEPT}.",
        ),
        Trouble.FULL: (
            StoreFullError,
            "No space left while writing to the store {where}. Nothing half-written was published; free some space "
            "and run the same command again: finished blocks are kept.",
        ),
        Trouble.OTHER: (
            StoreError,
            "The store {where} cannot be used: {why}. Check its address, or choose another place.",
        ),
    },
    Side.CHECKPOINT: {
        Trouble.REFUSED: (
            CheckpointError,
            "{where} may not be read: {why}. Check the credentials and what they may read.",
        ),
        Trouble.CLOCK: (
            CheckpointError,
            "{where} may not be read: {why}. Set the clock of this machine, and try again.",
        ),
        Trouble.ABSENT: (
            CheckpointError,
            "{where} does not exist, or is hidden from these credentials. Check its address.",
        ),
        Trouble.PASSING: (
            UnreachableError,
            "{where} cannot be reached: {why}. Check its address and the network, and try again.",
        ),
        Trouble.OTHER: (CheckpointError, "{where} cannot be read: {why}."),
    },
    Side.UPLOAD: {
        Trouble.REFUSED: (HubError, f"The Hub refuses to write {{where}}: {{why}}. {LOG_IN}."),
        Trouble.OTHER: (
            HubError,
            "The upload to the Hub's {where} failed: {why}. The folder is whole; run the same command again.",
        ),
    },
}


def explain(error: Exception, side: Side, where: object) -> ImpartError:
    """Return a failure as the error that its sentence belongs to.

    Args:
        error: what the client or the operating system raised.
        side: who met it.
        where: the place, as its sentence calls it.
    """
    trouble, table = trouble_of(error), _SENTENCES[side]
    of_place = isinstance(error, OSError) and error.errno in _OF_PLACES
    if side is Side.STORE and trouble in (Trouble.OTHER, Trouble.ABSENT) and of_place:
        return StoreError(f"Cannot write to the store {where}: {getattr(error, 'strerror', '')}. Choose another place.")
    kind, sentence = table.get(trouble, table[Trouble.OTHER])
    why = (without_secrets(" ".join(str(error).split())) or type(error).__name__)[:_LONGEST_REASON].rstrip(".")
    return kind(sentence.format(where=where, why=why))


@contextmanager
def explained(side: Side, where: object) -> Iterator[None]:
    """Turn whatever a client or the operating system raises in the block into a sentence; ours stay what they are.

    Args:
        side: who meets the failure. What a store does not hold stays a FileNotFoundError, for its caller to tell.
        where: the place, as its sentence calls it.

    Raises:
        StoreUnreachableError, UnreachableError: it may pass by itself: no connection, a time-out, a busy server.
        StoreDeniedError: credentials or permissions do not allow it.
        StoreFullError: there is no space left, or a quota is used up.
        StoreError, CheckpointError, HubError: anything else.
    """
    try:
        yield
    except ImpartError:
        raise
    except Exception as error:
        if side is Side.STORE and isinstance(error, FileNotFoundError):
            raise
        raise explain(error, side, where) from error
