"""A proxy in front of an S3 server that counts what passes, and breaks it on request."""

import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.wire import Head, Stream, body

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset instead of an end
_CODES = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}
_WITHOUT_BODY = {204, 304}
_SETTLED_IN_SECONDS = 10


@dataclass(frozen=True)
class Request:
    """What a fault may look at: a request's method, its path with the query, and the bytes of its body.

    Of a body in chunks the size is None.
    """

    method: str
    path: str
    size: int | None


@dataclass(frozen=True)
class Seen:
    """A request that passed; the status is None where no answer was given."""

    method: str
    path: str
    status: int | None


@dataclass
class Fault:
    """Something that goes wrong, until it went wrong often enough or the proxy is healed.

    Attributes:
        kind: `status`, `cut request`, `cut answer` or `stall`.
        left: how often it still happens; None: always.
        fraction: the share of matching requests that it happens to, drawn by `draw`.
        match: which requests it may happen to.
        status: of the answer, where it is one.
        reset: whether a cut is a reset instead of an end.
        injected: how often it happened.
    """

    kind: str
    left: int | None
    fraction: float
    match: Callable[[Request], bool]
    draw: random.Random
    status: int = 0
    reset: bool = False
    injected: int = 0

    def strikes(self, request: Request) -> bool:
        """Return whether it happens to this request, and count that it does."""
        if self.left == 0 or not self.match(request) or (self.kind == "cut request" and request.size == 0):
            return False
        if self.fraction < 1 and self.draw.random() >= self.fraction:
            return False
        self.left = None if self.left is None else self.left - 1
        self.injected += 1
        return True


class _CutError(Exception):
    """The connections are to be closed now."""


class S3Proxy:
    """Passes requests on to a server unchanged, so that their signatures hold, and its answers back.

    Everything may be asked and set from any thread while it runs.

    Attributes:
        url: where it listens.
        requests: what passed or was broken.
        received: bytes of answers that the server gave.
        sent: bytes of requests that it was given.
        refused: connections that were closed at once, and those that were cut for it.
    """

    def __init__(self, url: str) -> None:
        """Listen on a port of its own until it is closed or the process ends."""
        target = urlsplit(url)
        self._target = (str(target.hostname), int(target.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[Seen] = []
        self.received = self.sent = self.refused = 0
        self._lock = threading.Lock()
        self._under_way = 0
        self._faults: list[Fault] = []
        self._live: set[socket.socket] = set()
        self._refusing = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "S3Proxy":
        """Return itself; it is closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Stop listening and end every connection."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._end_live()

    def settle(self) -> None:
        """Wait until every request that was taken is counted: a client may act on an answer before it is.

        Raises:
            TimeoutError: one was under way all the time.
        """
        deadline = time.monotonic() + _SETTLED_IN_SECONDS
        while self._under_way:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._under_way} requests are under way still.")
            time.sleep(0.001)

    def count(self, method: str | None = None, status: int | None = None) -> int:
        """Return how many requests passed, of a method or with a status where one is given."""
        with self._lock:
            return sum(method in (None, seen.method) and status in (None, seen.status) for seen in self.requests)

    def counts(self) -> dict[str, int]:
        """Return how many requests passed by method."""
        with self._lock:
            methods = [seen.method for seen in self.requests]
        return {method: methods.count(method) for method in sorted(set(methods))}

    def answer(self, status: int, times: int | None = 1, **which: object) -> Fault:
        """Answer requests with this status and an S3 error instead of passing them on; see `_add` for which."""
        return self._add("status", times, status=status, **which)

    def cut_requests(self, times: int | None = 1, *, reset: bool = False, **which: object) -> Fault:
        """Cut connections when the server was given half of a request's body; those without one are passed on."""
        return self._add("cut request", times, reset=reset, **which)

    def cut_answers(self, times: int | None = 1, *, reset: bool = False, **which: object) -> Fault:
        """Cut connections when half of an answer's body was given back; of one without a body, half of its head."""
        return self._add("cut answer", times, reset=reset, **which)

    def stall(self, times: int | None = 1, **which: object) -> Fault:
        """Take requests and say nothing, until the client gives up or the proxy is healed."""
        return self._add("stall", times, **which)

    def refuse(self) -> None:
        """Cut every connection, and close new ones at once, until the proxy is healed."""
        with self._lock:
            self._refusing = True
            self.refused += len(self._live) // 2
        self._end_live()

    def heal(self) -> None:
        """Break nothing any more. Connections that stalled are ended."""
        with self._lock:
            self._refusing = False
            stalled = any(fault.kind == "stall" for fault in self._faults)
            self._faults.clear()
        if stalled:
            self._end_live()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse connections as long as the block lasts."""
        self.refuse()
        try:
            yield
        finally:
            self.heal()

    def _add(
        self,
        kind: str,
        times: int | None,
        *,
        fraction: float = 1.0,
        seed: int = 0,
        match: Callable[[Request], bool] = lambda request: True,
        status: int = 0,
        reset: bool = False,
    ) -> Fault:
        """Add a fault; the first that fits a request happens to it.

        Args:
            kind: see `Fault`.
            times: how often it happens; None: until the proxy is healed.
            fraction: the share of the matching requests that it happens to.
            seed: of the draw.
            match: which requests it may happen to.
            status: see `Fault`.
            reset: see `Fault`.
        """
        fault = Fault(kind, times, fraction, match, random.Random(seed), status, reset)
        with self._lock:
            self._faults.append(fault)
        return fault

    def _take(self, request: Request) -> Fault | None:
        """Begin a request, which `_note` ends; return what goes wrong with it."""
        with self._lock:
            self._under_way += 1
            return next((fault for fault in self._faults if fault.strikes(request)), None)

    def _note(self, request: Request, status: int | None) -> None:
        with self._lock:
            self.requests.append(Seen(request.method, request.path, status))
            self._under_way -= 1

    def _end_live(self) -> None:
        with self._lock:
            live = list(self._live)
        for connection in live:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it, which closes it

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                refusing = self._refusing
                self.refused += refusing
                if not refusing:
                    self._live.add(connection)
            if refusing:
                _reset(connection)
            else:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        pair = _Pair(self, connection)
        try:
            while head := pair.client.until(b"\r\n\r\n"):
                if not pair.exchange(Head(head)):
                    break
        except (OSError, _CutError):
            pass
        finally:
            pair.close()


class _Pair:
    """A client's connection, and the one to the server that its requests go to."""

    def __init__(self, proxy: S3Proxy, connection: socket.socket) -> None:
        self.proxy = proxy
        self.client = Stream(connection)
        self.server: Stream | None = None
        self._open(connection)

    def _open(self, connection: socket.socket) -> Stream:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.proxy._lock:
            self.proxy._live.add(connection)
        return Stream(connection)

    def _drop(self, stream: Stream | None) -> None:
        if stream:
            with self.proxy._lock:
                self.proxy._live.discard(stream.connection)
            stream.connection.close()

    def close(self) -> None:
        self._drop(self.client)
        self._drop(self.server)

    def exchange(self, head: Head) -> bool:
        """Pass a request on and its answer back, or break it; return whether the connection goes on."""
        method, path, _ = head.first
        request = Request(method, path, None if head.chunked else head.length or 0)
        fault = self.proxy._take(request)
        kind = fault.kind if fault else ""
        status: int | None = None
        try:
            if fault and kind == "status":
                status = self._answer(head, fault.status)
                return not head.closes()
            if kind == "stall":
                for _ in self.client.rest():
                    pass
                raise _CutError
            answer = self._ask(head, fault if kind == "cut request" else None)
            status = None if kind == "cut answer" else answer.status
            self._give(head, answer, fault if kind == "cut answer" else None)
            return not (head.closes() or answer.closes())
        finally:
            self.proxy._note(request, status)

    def _answer(self, head: Head, status: int) -> int:
        """Answer in the server's place, once the body was taken so that the connection can go on."""
        if "expect" in head.fields:
            self.client.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        for _ in body(self.client, head):
            pass
        code = _CODES.get(status, "InternalError")
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Injected.</Message></Error>".encode()
        lines = f"HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n\r\n"
        self.client.connection.sendall(lines.encode() + (b"" if head.first[0] == "HEAD" else text))
        return status

    def _ask(self, head: Head, cut: Fault | None) -> Head:
        """Pass a request on; return the head of its answer."""
        self._connect()
        self._send(head.raw)
        answer = None
        if head.fields.get("expect", "").lower() == "100-continue":
            answer = self._answer_head()
            if answer.status != 100:
                return answer  # refused before its body was sent
            self.client.connection.sendall(answer.raw)
        passed = 0
        with suppress(BrokenPipeError, ConnectionResetError):  # it may answer without having read it all
            for piece in body(self.client, head):
                half = max(1, (head.length or 0) // 2)
                if cut and (head.length is None or passed + len(piece) >= half):
                    self._send(piece[: max(1, half - passed)] if head.length else piece[: len(piece) // 2])
                    self._cut(cut)
                self._send(piece)
                passed += len(piece)
        if cut:
            self._cut(cut)
        return self._answer_head()

    def _give(self, asked: Head, answer: Head, cut: Fault | None) -> None:
        """Pass an answer back."""
        bodiless = asked.first[0] == "HEAD" or answer.status in _WITHOUT_BODY or answer.length == 0
        if cut and bodiless:
            self.client.connection.sendall(answer.raw[: len(answer.raw) // 2])
            self._cut(cut)
        self.client.connection.sendall(answer.raw)
        if bodiless:
            return
        assert self.server
        passed = 0
        ends = answer.chunked or answer.length is not None
        for piece in body(self.server, answer) if ends else self.server.rest():
            with self.proxy._lock:
                self.proxy.received += len(piece)
            half = (answer.length or 0) // 2
            if cut and (answer.length is None or passed + len(piece) >= half):
                self.client.connection.sendall(piece[: half - passed] if answer.length else piece[: len(piece) // 2])
                self._cut(cut)
            self.client.connection.sendall(piece)
            passed += len(piece)
        if not ends:
            raise _CutError

    def _connect(self) -> Stream:
        """Return the connection to the server, a new one where it ended the last."""
        if self.server and select.select([self.server.connection], [], [], 0)[0]:
            self._drop(self.server)
            self.server = None
        if self.server is None:
            self.server = self._open(socket.create_connection(self.proxy._target))
        return self.server

    def _send(self, data: bytes) -> None:
        assert self.server
        self.server.connection.sendall(data)
        with self.proxy._lock:
            self.proxy.sent += len(data)

    def _answer_head(self) -> Head:
        assert self.server
        raw = self.server.until(b"\r\n\r\n")
        if not raw:
            raise ConnectionError("no answer")
        with self.proxy._lock:
            self.proxy.received += len(raw)
        return Head(raw)

    def _cut(self, fault: Fault) -> None:
        if fault.reset:
            self.client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise _CutError


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()
