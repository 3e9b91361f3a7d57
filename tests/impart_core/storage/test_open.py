"""Storage options from the environment, and the failures of storage clients as sentences."""

import errno
import re

import aiohttp
import botocore.exceptions
import httpx2
import pytest

from impart_core.base.errors import CheckpointError, ConfigError, StoreError, UnreachableError
from impart_core.base.retry import is_transient
from impart_core.checkpoint.index import open_checkpoint
from impart_core.storage.failures import Side, explain, explained
from impart_core.storage.open import OPTIONS_VARIABLE, storage_options
from impart_core.store.store import Store


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OPTIONS_VARIABLE, raising=False)
    assert storage_options() == {}
    monkeypatch.setenv(OPTIONS_VARIABLE, '{"endpoint_url": "http://127.0.0.1:9", "anon": true}')
    assert storage_options() == {"endpoint_url": "http://127.0.0.1:9", "anon": True}


@pytest.mark.parametrize("text", ["{", "[]", '"hunter2"', "hunter2", '{"secret": "hunter2"', "[" * 100_000, "9" * 5000])
def test_options_that_are_no_object_are_refused_and_not_repeated(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPTIONS_VARIABLE, text)
    with pytest.raises(ConfigError, match=f"{OPTIONS_VARIABLE} is not a JSON object") as caught:
        storage_options()
    assert "hunter2" not in str(caught.value)


def answered(status: int) -> httpx2.HTTPStatusError:
    response = httpx2.Response(status, request=httpx2.Request("GET", "http://127.0.0.1"))
    return httpx2.HTTPStatusError(f"status {status}", request=response.request, response=response)


PASSING = [
    ConnectionResetError("gone"),
    TimeoutError("late"),
    OSError(errno.EIO, "an error without a name"),
    OSError(errno.EBUSY, "slow down"),
    OSError(getattr(errno, "EREMOTEIO", errno.EIO), "internal error"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
    botocore.exceptions.ReadTimeoutError(endpoint_url="http://127.0.0.1:9"),
    botocore.exceptions.ConnectionClosedError(endpoint_url="http://127.0.0.1:9"),
    httpx2.ConnectError("refused"),
    httpx2.ReadTimeout("late"),
    httpx2.RemoteProtocolError("cut"),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientPayloadError("cut"),
    *map(answered, (429, 500, 503)),
]
LASTING = [
    (FileNotFoundError("gone"), "does not exist"),
    (answered(404), "does not exist"),
    (PermissionError("wrong key"), "may not be read: wrong key"),
    (answered(403), "may not be read"),
    (botocore.exceptions.NoCredentialsError(), "may not be read: Unable to locate credentials"),
    (OSError(errno.EINVAL, "invalid range"), "cannot be read"),
    (ValueError("odd\n  reply."), "cannot be read: odd reply."),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_what_may_pass_by_itself_is_tried_again(error: Exception) -> None:
    with (
        pytest.raises(UnreachableError, match="s3://a/b cannot be reached") as caught,
        explained(Side.CHECKPOINT, "s3://a/b"),
    ):
        raise error
    assert is_transient(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(("error", "why"), LASTING, ids=[type(error).__name__ for error, _ in LASTING])
def test_what_repeats_itself_is_a_sentence_and_not_tried_again(error: Exception, why: str) -> None:
    explained = explain(error, Side.CHECKPOINT, "s3://a/b")
    assert f"s3://a/b {why}" in str(explained)
    assert isinstance(explained, CheckpointError)
    assert not is_transient(explained)


def test_a_sentence_of_ours_is_left_alone() -> None:
    with pytest.raises(ConfigError, match=r"^ours$"), explained(Side.CHECKPOINT, "s3://a/b"):
        raise ConfigError("ours")


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1:1/x", "zip://model.zip", "tar:///nothing.tar", "blockcache::ftp://127.0.0.1:1/x"]
)
def test_what_fails_when_it_is_opened_is_a_sentence(url: str) -> None:
    with pytest.raises(StoreError, match=re.escape(url)):
        Store(url)
    with pytest.raises(CheckpointError, match=re.escape(url)):
        open_checkpoint(url)
