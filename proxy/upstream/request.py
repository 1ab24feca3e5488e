"""A request to upstream before it is written: its timeouts, its serialized head, and its body framing."""

from collections.abc import AsyncIterable
from dataclasses import dataclass

import httpx

from proxy.wire.headers import Headers

Body = bytes | AsyncIterable[bytes]

# Both in one message would let two servers see two different bodies (request smuggling, RFC 9112 §11.2).
FRAMING = frozenset((b"content-length", b"transfer-encoding"))
# RFC 9110 §8.6: these send `Content-Length: 0` when there is no body.
_METHODS_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))
_CR, _LF = 13, 10


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Maximum waits in seconds; `math.inf` means no limit."""

    connect_s: float = 10.0
    write_s: float = 60.0
    """Upstream reads nothing of the request."""
    head_s: float = 600.0
    """From the end of the request to the head of the response."""
    read_s: float = 300.0
    """Between two reads of a body."""
    pool_s: float = 10.0
    """Until a connection is free."""


def request_head(method: bytes, target: bytes, headers: Headers, body: Body) -> tuple[bytes, int | None]:
    """The serialized head with framing, and the body's length (None: chunked). Raises httpx.LocalProtocolError."""
    length = len(body) if isinstance(body, bytes) else None
    lines = [b"%b %b HTTP/1.1" % (method, target)]
    for header in headers:
        if header[0] not in FRAMING:
            lines.append(b": ".join(header))
        elif header[0] == b"content-length":
            length = _declared_length(header[1], length)
    if length is None:
        lines.append(b"transfer-encoding: chunked")
    elif length or method in _METHODS_WITH_BODY:
        lines.append(b"content-length: %d" % length)
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    # Comparing the number of line ends is a cheap check against header injection.
    ends = len(lines) + 1
    if head.count(_LF) != ends or head.count(_CR) != ends or 0 in head:
        raise httpx.LocalProtocolError("Illegal character in the request head")
    if lines[0].count(b" ") != 2:
        raise httpx.LocalProtocolError("Illegal space in the request line")
    return head, length


def _declared_length(value: bytes, known: int | None) -> int:
    if not value.isdigit():
        raise httpx.LocalProtocolError("Malformed Content-Length in the request")
    if known is not None and int(value) != known:
        raise httpx.LocalProtocolError(f"Content-Length is {int(value)}, not {known}")
    return int(value)
