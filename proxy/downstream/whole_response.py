"""Sends a response from memory in pieces, and limits the bytes of such responses that wait for slow callers."""

from collections import Counter

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.errors import APIError, error_response

# Each piece is written only when the caller has read most of the ones before it.
_PIECE_BYTES = 256 * 2**10
# Smaller responses fit into a connection's buffers, and are not counted.
_COUNTED_BYTES = 2**20
_CALLER_BYTES = 32 * 2**20
_ALL_BYTES = 128 * 2**20


class Backlog:
    """Bytes of large responses that are being sent, of each caller and of all."""

    def __init__(self) -> None:
        self._sizes: Counter[str] = Counter()

    def has_room(self, caller: str, size: int) -> bool:
        """Whether a response may be sent; a caller's only one may have any size."""
        held = self._sizes[caller]
        return not held or (held + size <= _CALLER_BYTES and self._sizes.total() + size <= _ALL_BYTES)

    def add(self, caller: str, size: int) -> None:
        self._sizes[caller] += size

    def remove(self, caller: str, size: int) -> None:
        self._sizes[caller] -= size
        if not self._sizes[caller]:
            del self._sizes[caller]


class WholeResponse(Response):
    """A response in pieces; 503 if too many large ones of its caller, or of all, are waiting to be read."""

    def __init__(self, content: bytes, *, backlog: Backlog, caller: str, media_type: str, headers: dict[str, str]):
        super().__init__(content, media_type=media_type, headers=headers)
        self._backlog = backlog
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        size = len(self.body)
        if size <= _COUNTED_BYTES:
            await super().__call__(scope, receive, send)
        elif self._backlog.has_room(self._caller, size):
            self._backlog.add(self._caller, size)
            try:
                await self._send_in_pieces(send)
            finally:
                self._backlog.remove(self._caller, size)
        else:
            await error_response(_too_many(), path=scope["path"])(scope, receive, send)

    async def _send_in_pieces(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for start in range(0, len(body), _PIECE_BYTES):
            piece = bytes(body[start : start + _PIECE_BYTES])
            await send({"type": "http.response.body", "body": piece, "more_body": start + _PIECE_BYTES < len(body)})


def _too_many() -> APIError:
    return APIError(
        "Too many large answers are waiting to be read; try again when some have been read.",
        status=503,
        type_="server_error",
        code="too_many_large_answers",
        headers={"Retry-After": "1"},
    )
