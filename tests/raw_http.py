"""HTTP/1.1 by hand over a socket: tests send chosen bytes, see every piece that comes back, and how it ended."""

import enum
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

WAIT_SECONDS = 15.0
BODILESS_STATUSES = (204, 304)

Address = tuple[str, int]
Headers = tuple[tuple[bytes, bytes], ...]


class Ending(enum.Enum):
    """How a message's body ended."""

    TERMINATED = "where its framing says"
    CLOSED = "with the connection, as a body without framing does"
    FIN_EARLY = "the connection was closed before the end"
    RESET = "the connection was reset before the end"


class EndedEarly(Exception):  # noqa: N818 - it is an outcome, not an error
    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.value)
        self.ending = ending


@dataclass(frozen=True, slots=True)
class Head:
    first_line: bytes
    headers: Headers

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]

    def tokens(self, name: bytes) -> list[bytes]:
        return [token.strip().lower() for value in self.values(name) for token in value.split(b",")]


def parse_head(head: bytes) -> Head:
    """A head with the empty line that ends it."""
    first_line, *lines = head[:-4].split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    return Head(first_line, tuple((name, value.strip(b" \t")) for name, _, value in pairs))


class Wire:
    """One side of a connection, with what was read and not yet used."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(WAIT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self._unread = b""

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.sendall(piece)

    def close(self) -> None:
        self.connection.close()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.connection.close()

    def read_head(self) -> Head:
        return parse_head(self._read_until(b"\r\n\r\n"))

    def read_body(self, head: Head) -> Iterator[bytes]:
        """The pieces of a body whose framing its head gives: one per chunk, or as they arrive."""
        if b"chunked" in head.tokens(b"transfer-encoding"):
            yield from self._read_chunks()
        elif lengths := head.values(b"content-length"):
            yield from self._read_length(int(lengths[0]))

    def read_until_closed(self) -> Iterator[bytes]:
        while piece := self._read_some():
            yield piece

    def has_ended(self) -> bool:
        """Wait for the other side to hang up; False when it sends more instead."""
        try:
            return self._unread == b"" and self.connection.recv(1) == b""
        except ConnectionError:
            return True

    def _read_length(self, left: int) -> Iterator[bytes]:
        while left:
            piece = self._read_some()
            if not piece:
                raise EndedEarly(Ending.FIN_EARLY)
            self._unread = piece[left:]
            left -= len(piece[:left])
            yield piece[: len(piece) - len(self._unread)]

    def _read_chunks(self) -> Iterator[bytes]:
        while size := int(self._read_until(b"\r\n").partition(b";")[0], 16):
            yield self._read_exactly(size + 2)[:-2]
        while self._read_until(b"\r\n") != b"\r\n":
            pass

    def _read_exactly(self, size: int) -> bytes:
        return b"".join(self._read_length(size))

    def _read_until(self, mark: bytes) -> bytes:
        read = bytearray()
        while mark not in read:
            piece = self._read_some()
            if not piece:
                raise EndedEarly(Ending.FIN_EARLY)
            read += piece
        end = read.index(mark) + len(mark)
        self._unread = bytes(read[end:])
        return bytes(read[:end])

    def _read_some(self) -> bytes:
        if self._unread:
            piece, self._unread = self._unread, b""
            return piece
        try:
            return self.connection.recv(1 << 16)
        except ConnectionError as exc:
            raise EndedEarly(Ending.RESET) from exc


@dataclass(slots=True)
class Reply:
    """A response while it is read."""

    wire: Wire
    method: bytes
    head: Head = Head(b"", ())
    interim: list[Head] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    arrived_at: list[float] = field(default_factory=list)
    ending: Ending | None = None

    def read_head(self) -> "Reply":
        """Read up to the final head; interim (1xx) ones are kept aside."""
        try:
            self.head = self.wire.read_head()
            while self.status < 200:
                self.interim.append(self.head)
                self.head = self.wire.read_head()
        except EndedEarly as exc:
            self.ending = exc.ending
        return self

    def read_body(self) -> "Reply":
        for _ in self.read_pieces():
            pass
        return self

    def read_pieces(self) -> Iterator[bytes]:
        """The body as it arrives; `ending` is set when it is over."""
        try:
            for piece in self._read_pieces() if self.ending is None else ():
                self.pieces.append(piece)
                self.arrived_at.append(time.monotonic())
                yield piece
        except EndedEarly as exc:
            self.ending = exc.ending

    def _read_pieces(self) -> Iterator[bytes]:
        self.ending = None
        if self.method == b"HEAD" or self.status in BODILESS_STATUSES or self.is_framed:
            bodiless = self.method == b"HEAD" or self.status in BODILESS_STATUSES
            yield from () if bodiless else self.wire.read_body(self.head)
            self.ending = Ending.TERMINATED
        else:
            yield from self.wire.read_until_closed()
            self.ending = Ending.CLOSED

    @property
    def is_framed(self) -> bool:
        return bool(self.head.values(b"content-length") or self.head.values(b"transfer-encoding"))

    @property
    def status(self) -> int:
        return int(self.head.first_line.split()[1]) if self.head.first_line else 0

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def connect(address: Address) -> Wire:
    return Wire(socket.create_connection(address, timeout=WAIT_SECONDS))


def ask(address: Address, *pieces: bytes) -> Reply:
    """Send the pieces on a connection of their own and read the whole response."""
    wire = connect(address)
    try:
        wire.send(*pieces)
        return Reply(wire, method_of(pieces[0])).read_head().read_body()
    finally:
        wire.close()


def method_of(request: bytes) -> bytes:
    return request.split(b" ", 1)[0]


def chunked(*pieces: bytes, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    chunks = (b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces)
    return b"".join(chunks) + b"0\r\n" + trailers + b"\r\n"


def request(
    target: bytes,
    body: bytes = b"",
    *,
    method: bytes = b"POST",
    headers: bytes = b"",
    content_type: bytes = b"application/json",
    version: bytes = b"HTTP/1.1",
) -> bytes:
    """A plain request; `headers` are whole lines, each with its CRLF."""
    length = b"Content-Length: %d\r\n" % len(body) if body or method == b"POST" else b""
    typed = b"Content-Type: %s\r\n" % content_type if body else b""
    head = b"%s %s %s\r\nHost: model.example\r\n" % (method, target, version)
    return head + typed + length + headers + b"\r\n" + body
