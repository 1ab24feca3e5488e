"""Reads a request's body, whole or in pieces, up to the size limit."""

from collections.abc import AsyncIterator

from starlette.types import Message, Receive

from proxy.errors import too_large


class DepartedError(Exception):
    """The caller disconnected before its request was complete."""


async def read_body(receive: Receive, *, limit_bytes: int) -> bytes:
    """Reads the whole body. Raises DepartedError; raises APIError 413 as soon as the limit is exceeded."""
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
    """Yields the body as it arrives."""
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
