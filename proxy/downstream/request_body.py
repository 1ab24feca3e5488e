"""The body of a caller's request: whole, or piece by piece, and never more of it than the limit."""

from collections.abc import AsyncIterator

from starlette.types import Message, Receive

from proxy.errors import too_large


class DepartedError(Exception):
    """The caller left before its request was complete."""


async def read_body(receive: Receive, *, limit_bytes: int) -> bytes:
    """The whole request body. Raises DepartedError, or APIError 413 before a body over the limit is read to its end."""
    message = await receive()
    if not message.get("more_body") and message["type"] == "http.request":
        body: bytes = message["body"]
        _check_length(len(body), limit_bytes)
        return body
    pieces = bytearray()
    async for piece in _pieces(message, receive):
        pieces += piece
        _check_length(len(pieces), limit_bytes)
    return bytes(pieces)


async def stream_body(receive: Receive, *, limit_bytes: int) -> AsyncIterator[bytes]:
    """The request body as it comes."""
    length = 0
    async for piece in _pieces(await receive(), receive):
        length += len(piece)
        _check_length(length, limit_bytes)
        yield piece


async def _pieces(message: Message, receive: Receive) -> AsyncIterator[bytes]:
    while True:
        if message["type"] != "http.request":
            raise DepartedError
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return
        message = await receive()


def _check_length(length: int, limit_bytes: int) -> None:
    if length > limit_bytes:
        raise too_large(limit_bytes)
