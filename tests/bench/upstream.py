"""A model server that costs next to nothing: prebuilt events, one write for each, paced by a wheel of milliseconds."""

import asyncio
import itertools
import re
import sys
from typing import cast
from urllib.parse import parse_qs, urlsplit

import uvloop

from tests.bench import dialects, wire

_STREAM = re.compile(rb'"stream": ?true')
_MODELS = {"object": "list", "data": [{"id": wire.MODEL, "object": "model", "created": 0, "owned_by": "vllm"}]}
_HEALTHY = wire.plain_reply("200 OK", {})
_TICK_S = 0.001
_NOT_FOUND = wire.plain_reply("404 Not Found", {"detail": "Not Found"})


class Pace:
    """What every stream does at present: how many tokens, and how many a second."""

    def __init__(self) -> None:
        self.set(tokens=200, rate=50)
        self.usage = wire.usage_event()
        self.ids = itertools.count()

    def set(self, *, tokens: int, rate: int) -> None:
        self.events = wire.stream_events(tokens)
        self.dialects = {
            path.encode(): dialects.stream_events(endpoint, tokens) for endpoint, path in dialects.PATHS.items()
        }
        self.wheel = Wheel(slots=max(1, round(1000 / rate)))


class Wheel:
    """Gives each stream its next event once a turn, in the millisecond of the turn in which the stream began."""

    def __init__(self, *, slots: int) -> None:
        self.slots: list[list[Connection]] = [[] for _ in range(slots)]
        self.tick = 0
        self.due = 0.0
        self.running = 0

    def add(self, connection: "Connection") -> None:
        loop = asyncio.get_running_loop()
        if not self.running:
            self.due = loop.time() + _TICK_S
            loop.call_later(_TICK_S, self._turn, loop)
        self.running += 1
        # The slot just past comes round again one whole turn from now.
        self.slots[(self.tick - 1) % len(self.slots)].append(connection)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        while self.due <= now:
            slot = self.tick % len(self.slots)
            before = self.slots[slot]
            if before:
                after = [connection for connection in before if connection.send_next()]
                self.slots[slot] = after
                self.running -= len(before) - len(after)
            self.tick += 1
            self.due += _TICK_S
        if self.running:
            # Not `call_at`: uvloop rounds to milliseconds, and less than half of one is a timer that spins until then.
            loop.call_later(_TICK_S, self._turn, loop)


class Connection(asyncio.Protocol):
    """One keep-alive connection: reads a request, answers it, waits for the next."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.buffer = b""
        self.alive = False
        self.id = b""
        self.events: list[wire.Split] = []
        self.position = 0
        self.ending = self.usage = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self.alive = True
        # A caller that reads slowly must not slow the others: a reply is small, so all of it may wait in memory.
        self.transport.set_write_buffer_limits(high=1 << 20)

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = wire.content_length(self.buffer[:head_end])
        if length is None and b"chunked" in self.buffer[:head_end].lower():
            complete = self.buffer.endswith(b"\r\n" + wire.TERMINATOR)
        else:
            complete = len(self.buffer) >= head_end + 4 + (length or 0)
        if complete:
            request, self.buffer = self.buffer, b""
            self.answer(request)

    def answer(self, request: bytes) -> None:
        if request.startswith(b"POST /v1/chat/completions"):
            self.id = b"%016x" % next(self.pace.ids)
            if _STREAM.search(request):
                usage = self.id.join(self.pace.usage) if b"include_usage" in request else b""
                self.start_stream(self.pace.events, ending=_DONE, usage=usage)
            else:
                self.transport.write(self.id.join(_WHOLE))
            return
        path = request.split(b" ", 2)[1]
        if path in self.pace.dialects:
            self.id = b"%016x" % next(self.pace.ids)
            if path in _OTHER_WHOLE and not _STREAM.search(request):
                self.transport.write(self.id.join(_OTHER_WHOLE[path]))
            else:
                self.start_stream(self.pace.dialects[path], ending=dialects.done())
            return
        target = path.decode("latin-1")
        url = urlsplit(target)
        if url.path == "/bench/pace":
            query = parse_qs(url.query)
            self.pace.set(tokens=int(query["tokens"][0]), rate=int(query["rate"][0]))
        replies = {"/health": _HEALTHY, "/bench/pace": _HEALTHY, "/v1/models": wire.plain_reply("200 OK", _MODELS)}
        self.transport.write(replies.get(url.path, _NOT_FOUND))

    def start_stream(self, events: list[wire.Split], *, ending: bytes, usage: bytes = b"") -> None:
        """The head, the role and the first token go out at once; the wheel brings the others."""
        self.events, self.ending, self.usage = events, ending, usage
        self.position = 0
        self.transport.write(_STREAM_HEAD)
        self.send_next()
        self.send_next()
        self.pace.wheel.add(self)

    def send_next(self) -> bool:
        """Write one event; after the last token also what ends the stream. False when there is no next one."""
        if not self.alive:
            return False
        self.transport.write(self.id.join(self.events[self.position]))
        self.position += 1
        if self.position < len(self.events) - 1:
            return True
        self.transport.write(self.id.join(self.events[-1]))
        if self.usage:
            self.transport.write(self.usage)
        self.transport.write(self.ending)
        return False


_WHOLE = wire.whole_reply()
_OTHER_WHOLE = {dialects.path_of("responses").encode(): dialects.whole_response()}
_STREAM_HEAD = wire.stream_head()
_DONE = wire.done()


async def serve() -> None:
    """Serve on a free port, said in one line, until the standard input ends: so it never outlives its parent."""
    pace = Pace()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(pace), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(serve())
