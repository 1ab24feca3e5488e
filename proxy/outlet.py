"""The short way out: a piece of a reply written to its caller's connection at once, framed as uvicorn frames it.

`send` is a coroutine behind others, which costs more than all else about a token. What can be written without it is;
heads, ends and every other framing go through `send`.
"""

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

EXTENSION = "stellarchat.outlet"


class Outlet:
    """Where the reply to one request goes."""

    __slots__ = ("_cycle", "_flow", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._transport = cycle.transport

    @property
    def is_open(self) -> bool:
        """Whether the reply has begun, has not ended, and is in chunks."""
        cycle = self._cycle
        return cycle.response_started and not cycle.response_complete and bool(cycle.chunked_encoding)

    def write(self, data: bytes) -> bool:
        """Write a piece that is not empty, unless the caller has left. False where the caller is slow: `drain` then."""
        if not self._cycle.disconnected:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self._flow.write_paused

    async def drain(self) -> None:
        """Wait until the caller has taken most of it, or has left."""
        await self._flow.drain()


def outlet_of(scope: Scope) -> Outlet | None:
    """The short way to this caller, where its connection has one."""
    outlet = scope.get("extensions", {}).get(EXTENSION)
    return outlet if isinstance(outlet, Outlet) else None
