"""HTTP messages as they travel: heads and bodies, byte for byte."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

_CHUNK = 1 << 16


class Stream:
    """A connection's bytes, by lines and by pieces."""

    def __init__(self, connection: socket.socket) -> None:
        """Read from a connection."""
        self.connection = connection
        self.ahead = b""

    def piece(self, most: int = _CHUNK) -> bytes:
        """Return the next bytes, none at the end."""
        data = self.ahead or self.connection.recv(most)
        self.ahead = data[most:]
        return data[:most]

    def until(self, end: bytes) -> bytes:
        """Return all up to and with an end mark, or nothing where the connection ends first."""
        data = self.ahead
        while end not in data:
            more = self.connection.recv(_CHUNK)
            if not more:
                return b""
            data += more
        found = data.index(end) + len(end)
        self.ahead = data[found:]
        return data[:found]

    def exactly(self, count: int) -> Iterator[bytes]:
        """Give so many bytes piece by piece."""
        while count:
            data = self.piece(min(count, _CHUNK))
            if not data:
                raise ConnectionError("ended in mid-body")
            count -= len(data)
            yield data

    def chunks(self) -> Iterator[bytes]:
        """Give a body in chunks as it is, sizes and trailers included."""
        while line := self.until(b"\r\n"):
            yield line
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            yield from self.exactly(size + 2)
        while line := self.until(b"\r\n"):
            yield line
            if line == b"\r\n":
                return
        raise ConnectionError("ended in mid-body")

    def rest(self) -> Iterator[bytes]:
        """Give all until the connection ends."""
        while data := self.piece():
            yield data


@dataclass
class Head:
    """The first lines of a request or an answer, as they came."""

    raw: bytes
    first: list[str] = field(init=False)
    fields: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Take the lines apart; the fields' names are in small letters."""
        lines = self.raw.decode("latin-1").split("\r\n")
        self.first = lines[0].split(" ", 2)
        pairs = (line.partition(":") for line in lines[1:] if line)
        self.fields = {name.strip().lower(): value.strip() for name, _, value in pairs}

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return "chunked" in self.fields.get("transfer-encoding", "").lower()

    @property
    def length(self) -> int | None:
        """The body's bytes, where the head tells."""
        return int(self.fields["content-length"]) if "content-length" in self.fields else None

    @property
    def status(self) -> int:
        """An answer's status."""
        return int(self.first[1])

    def closes(self) -> bool:
        """Return whether the connection ends after this message."""
        return self.fields.get("connection", "").lower() == "close"


def body(stream: Stream, head: Head) -> Iterator[bytes]:
    """Give a message's body as it travels, piece by piece."""
    return stream.chunks() if head.chunked else stream.exactly(head.length or 0)
