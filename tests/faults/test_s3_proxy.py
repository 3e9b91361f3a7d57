"""The proxy's faults, as a client of a real S3 server meets them, and what can be done to the server itself."""

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.s3proxy import Request, S3Proxy, Seen
from tests.servers import S3Server, running_s3

pytestmark = pytest.mark.faults

SIZE = 300_000  # several pieces of a body


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that may be killed."""
    with running_s3(S3Server(tmp_path_factory.mktemp("s3"))) as running:
        client_of(running.variables).pipe_file("impart/object", bytes(SIZE))
        yield running


@pytest.fixture
def proxy(server: S3Server) -> Iterator[S3Proxy]:
    """A proxy in front of it that breaks nothing yet."""
    with S3Proxy(server.variables["AWS_ENDPOINT_URL"]) as between:
        yield between


@pytest.fixture
def client(server: S3Server, proxy: S3Proxy) -> Any:
    """A client behind the proxy that tries nothing twice, and is as patient as a busy machine needs."""
    return client_of({**server.variables, "AWS_ENDPOINT_URL": proxy.url})


@pytest.fixture
def hasty(server: S3Server, proxy: S3Proxy) -> Any:
    """The same, but it waits for an answer for a second only."""
    return client_of({**server.variables, "AWS_ENDPOINT_URL": proxy.url}, read_timeout=1)


def client_of(variables: dict[str, str], read_timeout: int = 60) -> Any:
    """Return a new client, not one that s3fs remembers."""
    import s3fs

    client = s3fs.S3FileSystem(
        key=variables["AWS_ACCESS_KEY_ID"],
        secret=variables["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        config_kwargs={"connect_timeout": 60, "read_timeout": read_timeout, "retries": {"max_attempts": 0}},
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    client.retries = 1
    return client


def is_put(request: Request) -> bool:
    """Return whether a request writes."""
    return request.method == "PUT"


def test_what_is_not_broken_passes_as_it_is_and_is_counted(client: Any, proxy: S3Proxy, tmp_path: Path) -> None:
    data = bytes(range(256)) * 45_000
    client.pipe_file("impart/whole", data)
    assert client.cat_file("impart/whole") == data
    assert client.cat_file("impart/whole", start=1000, end=200_000) == data[1000:200_000]
    (tmp_path / "large").write_bytes(data)
    client.put_file(str(tmp_path / "large"), "impart/parts", chunksize=5 << 20)  # in three parts
    client.get_file("impart/parts", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data
    assert client.info("impart/parts")["size"] == len(data)
    client.rm_file("impart/parts")
    with pytest.raises(FileNotFoundError):
        client.cat_file("impart/absent")
    proxy.settle()
    assert set(proxy.counts()) >= {"DELETE", "GET", "HEAD", "POST", "PUT"}
    assert proxy.counts()["PUT"] == 4 == proxy.count("PUT", 200)
    assert Seen("PUT", "/impart/whole", 200) in proxy.requests
    assert len(proxy.requests) == proxy.count() == sum(proxy.counts().values())
    assert proxy.sent > 2 * len(data)
    assert proxy.received > 2 * len(data)


def test_many_connections_at_once_share_a_proxy(client: Any, proxy: S3Proxy) -> None:
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda _: len(client.cat_file("impart/object")), range(32))
        assert set(read) == {SIZE}
    proxy.settle()
    assert proxy.count("GET", 200) == 32


@pytest.mark.parametrize(
    ("status", "kind", "number"),
    [(500, OSError, errno.EREMOTEIO), (503, OSError, errno.EBUSY), (403, PermissionError, None)],
)
def test_requests_are_answered_with_a_status(
    status: int, kind: type[OSError], number: int | None, client: Any, proxy: S3Proxy
) -> None:
    fault = proxy.answer(status, times=2)
    for attempt in (
        lambda: client.pipe_file("impart/refused", bytes(SIZE)),
        lambda: client.cat_file("impart/object"),
    ):
        with pytest.raises(kind) as raised:
            attempt()
        assert raised.value.errno == number
    proxy.settle()
    assert fault.injected == 2 == proxy.count(status=status)
    assert not client.exists("impart/refused")
    assert len(client.cat_file("impart/object")) == SIZE


@pytest.mark.parametrize("reset", [False, True])
def test_a_put_is_cut_in_mid_body_and_nothing_is_stored(reset: bool, client: Any, proxy: S3Proxy) -> None:
    from botocore.exceptions import ConnectionClosedError, EndpointConnectionError

    fault = proxy.cut_requests(times=2, reset=reset)  # aiohttp tries it again where the connection ends
    with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
        client.pipe_file("impart/cut", bytes(SIZE))
    assert fault.injected == 2
    assert SIZE <= proxy.sent < 2 * SIZE
    assert not client.exists("impart/cut")


def test_a_create_whose_answer_is_lost_finds_its_own_object(client: Any, proxy: S3Proxy) -> None:
    """The create succeeds, aiohttp sends it once more, and the second one is told that the name is taken."""
    fault = proxy.cut_answers(match=is_put)
    with pytest.raises(OSError) as raised:
        client.pipe_file("impart/created", b"data", mode="create")
    assert isinstance(raised.value, FileExistsError) or raised.value.errno == errno.EINVAL
    assert fault.injected == 1
    assert client.cat_file("impart/created") == b"data"


@pytest.mark.parametrize("reset", [False, True])
def test_a_get_is_cut_in_mid_body(reset: bool, client: Any, proxy: S3Proxy) -> None:
    from aiohttp import ClientPayloadError

    fault = proxy.cut_answers(reset=reset, match=lambda request: request.method == "GET")
    with pytest.raises(ClientPayloadError):
        client.cat_file("impart/object")
    assert fault.injected == 1
    assert len(client.cat_file("impart/object")) == SIZE


def test_a_stalled_get_meets_the_clients_time_out(hasty: Any, proxy: S3Proxy) -> None:
    from botocore.exceptions import ReadTimeoutError

    fault = proxy.stall()
    with pytest.raises(ReadTimeoutError):
        hasty.cat_file("impart/object")
    assert fault.injected == 1


def test_a_stalled_put_waits_for_ever_unless_it_is_given_a_limit(client: Any, proxy: S3Proxy) -> None:
    """The read time-out begins once a body is sent, and the body waits for `100 Continue`."""
    from fsspec.asyn import sync
    from fsspec.exceptions import FSTimeoutError

    client.connect()
    fault = proxy.stall()
    with pytest.raises(FSTimeoutError):
        sync(client.loop, client._pipe_file, "impart/stalled", b"data", timeout=2)
    assert fault.injected == 1


def test_refused_connections_and_those_that_were_open(client: Any, proxy: S3Proxy) -> None:
    from botocore.exceptions import ConnectionClosedError, EndpointConnectionError

    assert len(client.cat_file("impart/object")) == SIZE
    with proxy.refusing():
        for attempt in (lambda: client.pipe_file("impart/refused", b"data"), lambda: client.cat_file("impart/object")):
            with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
                attempt()
    assert proxy.refused >= 2
    assert len(client.cat_file("impart/object")) == SIZE


def test_a_fraction_of_requests_fails_the_same_each_time(client: Any, proxy: S3Proxy) -> None:
    def statuses() -> list[int | None]:
        fault = proxy.answer(403, times=None, fraction=0.5, seed=3)
        proxy.settle()
        before = proxy.count()
        for _ in range(20):
            try:
                client.info("impart/object")
            except PermissionError:
                continue
        proxy.settle()
        proxy.heal()
        found = [seen.status for seen in proxy.requests[before:]]
        assert found.count(403) == fault.injected
        return found

    first = statuses()
    assert 4 <= first.count(403) <= 16
    assert statuses() == first


def test_a_fault_happens_to_the_requests_that_it_is_meant_for(client: Any, proxy: S3Proxy) -> None:
    fault = proxy.answer(403, times=None, match=lambda request: is_put(request) and "secret" in request.path)
    client.pipe_file("impart/open", b"data")
    assert client.cat_file("impart/open") == b"data"
    with pytest.raises(PermissionError):
        client.pipe_file("impart/secret", b"data")
    assert fault.injected == 1


def test_the_reader_may_read_and_list_but_not_write(server: S3Server) -> None:
    reader = client_of(server.reader)
    assert len(reader.cat_file("impart/object")) == SIZE
    assert "impart/object" in reader.ls("impart")
    for attempt in (
        lambda: reader.pipe_file("impart/new", b"data"),
        lambda: reader.pipe_file("impart/new", b"data", mode="create"),
        lambda: reader.rm_file("impart/object"),
    ):
        with pytest.raises(PermissionError):
            attempt()
    assert reader.exists("impart/object")


def test_a_writer_that_is_revoked_may_do_nothing_until_it_is_restored(server: S3Server) -> None:
    writer = client_of(server.variables)
    server.revoke()
    for attempt in (lambda: writer.pipe_file("impart/new", b"data"), lambda: writer.cat_file("impart/object")):
        with pytest.raises(PermissionError):
            attempt()
    server.restore()
    writer.pipe_file("impart/new", b"data")
    assert writer.cat_file("impart/new") == b"data"


def test_a_killed_server_keeps_its_data_and_variables(server: S3Server, client: Any, proxy: S3Proxy) -> None:
    from botocore.exceptions import ConnectionClosedError, EndpointConnectionError

    before = dict(server.variables)
    client.pipe_file("impart/kept", b"data")
    server.kill()
    with pytest.raises(EndpointConnectionError):
        client_of(server.variables).cat_file("impart/kept")
    with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
        client.cat_file("impart/kept")
    server.start()
    assert server.variables == before
    assert client.cat_file("impart/kept") == b"data"
