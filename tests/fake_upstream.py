"""The tests' vLLM: a raw-socket HTTP/1.1 server without a framework, so that it can lie, stall, and die mid-stream.

In a test: the fixture `upstream`, or `async with fake_upstream() as upstream:`; then
`upstream.on("/v1/chat/completions", sse([...]))`. As its own process: `python -m tests.fake_upstream --port 0` prints
`ready <port>`; the `X-Fake` header then picks a behaviour (`X-Fake: stream; events=100; rate=50; size=20`). Without
either it is a chat model that echoes the last user message.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import pairwise
from typing import Any

import uvloop

Json = dict[str, Any]

HEAD_LIMIT = 1 << 20
DONE = b"data: [DONE]\n\n"
MODEL = "fake"


@dataclass(slots=True)
class Call:
    """One request as it arrived, and what became of it. Times are of `time.monotonic`."""

    number: int
    connection: int
    method: str
    target: str
    head: bytes
    body: bytes = b""
    arrived: float = field(default_factory=time.monotonic)
    answered: float | None = None
    """When the behaviour had written all it wanted; None while it writes, and where the caller left before."""
    left: float | None = None
    """When the caller was seen to close its connection during this request."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def header_list(self) -> list[tuple[str, str]]:
        """The headers in order, repeated ones repeated, names in lower case."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        pairs = (line.partition(":") for line in lines if line)
        return [(name.strip().lower(), value.strip()) for name, _, value in pairs]

    @property
    def headers(self) -> dict[str, str]:
        return dict(self.header_list)

    def json(self) -> Any:
        return json.loads(self.body)


class Reader(asyncio.StreamReader):
    """A StreamReader that tells when the caller has gone, without taking a byte of its next request."""

    def __init__(self) -> None:
        super().__init__(limit=HEAD_LIMIT)
        self.gone = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.gone.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.gone.set()


class Wire:
    """The connection as a behaviour sees it: writes whatever it is told to, true HTTP or not."""

    def __init__(self, reader: Reader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.keep_alive = True
        self.ended = False

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        await self.send(head_bytes(status, headers))

    async def chunk(self, data: bytes) -> None:
        await self.send(chunk_bytes(data))

    async def finish(self) -> None:
        """End the answer with FIN, whatever it still owed."""
        self.keep_alive, self.ended = False, True
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def reset(self) -> None:
        """End the connection with RST, as a killed process does."""
        self.keep_alive, self.ended = False, True
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        await asyncio.sleep(0)  # the transport closes its socket in the loop's next turn


Behaviour = Callable[[Call, Wire], Awaitable[None]]


def head_bytes(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunk_bytes(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
STREAM_HEADERS = (("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked"))


# Behaviours: each maker gives one for FakeUpstream.on().


def whole(body: bytes, *, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Behaviour:
    """A body with its length."""
    extra = tuple(headers)

    async def answer(call: Call, wire: Wire) -> None:
        typed = (
            () if any(name.lower() == "content-type" for name, _ in extra) else (("content-type", "application/json"),)
        )
        head = head_bytes(status, (*typed, ("content-length", str(len(body))), *extra))
        await wire.send(head if call.method == "HEAD" else head + body)

    return answer


def whole_json(body: object, *, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Behaviour:
    return whole(dumps(body), status=status, headers=headers)


def vllm_error(status: int, message: str = "the engine is tired", *, kind: str = "InternalServerError") -> Behaviour:
    return whole_json({"error": {"message": message, "type": kind, "param": None, "code": status}}, status=status)


def unauthorized() -> Behaviour:
    """vLLM's 401, whose error is a bare string."""
    return whole_json({"error": "Unauthorized"}, status=401)


def replay(recorded: bytes, *, split_at: Sequence[int] = (), delay: float = 0.0, status: int = 200) -> Behaviour:
    """A recorded stream's body as HTTP chunks: one an event, or cut at the given offsets; `delay` seconds between."""
    pieces = pieces_of(recorded, split_at) if split_at else events_of(recorded)
    return sse(pieces, delay=delay, status=status)


def sse(
    pieces: Iterable[bytes],
    *,
    delay: float = 0.0,
    status: int = 200,
    headers: Iterable[tuple[str, str]] = (),
    die_after: int | None = None,
    reset: bool = False,
) -> Behaviour:
    """A chunked stream of the given pieces. `die_after` N of them it ends without the last chunk: FIN, or RST."""
    ready, extra = list(pieces), tuple(headers)

    async def answer(call: Call, wire: Wire) -> None:
        await wire.head(status, (*STREAM_HEADERS, *extra))
        for count, piece in enumerate(ready):
            if count == die_after:
                break
            if count and delay:
                await asyncio.sleep(delay)
            await wire.chunk(piece)
        if die_after is None:
            await wire.send(LAST_CHUNK)
        elif reset:
            await wire.reset()
        else:
            await wire.finish()

    return answer


def until(gate: asyncio.Event, before: Iterable[bytes], after: Iterable[bytes]) -> Behaviour:
    """A stream that sends `before`, waits until the test opens the gate, and sends `after`: no sleeps needed."""
    first, rest = list(before), list(after)

    async def answer(call: Call, wire: Wire) -> None:
        await wire.head(200, STREAM_HEADERS)
        for piece in first:
            await wire.chunk(piece)
        await gate.wait()
        for piece in rest:
            await wire.chunk(piece)
        await wire.send(LAST_CHUNK)

    return answer


def raw(*pieces: bytes, delay: float = 0.0, close: bool = True) -> Behaviour:
    """These bytes and nothing else: garbage, both framing headers, a content-length that lies…"""

    async def answer(call: Call, wire: Wire) -> None:
        for count, piece in enumerate(pieces):
            if count and delay:
                await asyncio.sleep(delay)
            await wire.send(piece)
        if close:
            await wire.finish()

    return answer


def garbage() -> Behaviour:
    return raw(b"\x16\x03\x01 this is no HTTP\r\n\r\n")


def both_framings(body: bytes = b"{}") -> Behaviour:
    """Content-Length and Transfer-Encoding in one head."""
    headers = (
        ("content-length", str(len(body))),
        ("transfer-encoding", "chunked"),
        ("content-type", "application/json"),
    )
    return raw(head_bytes(200, headers) + chunk_bytes(body) + LAST_CHUNK)


def short_content_length(body: bytes = b'{"half":', *, missing: int = 10) -> Behaviour:
    """Promises `missing` bytes more than it sends before it closes."""
    return raw(
        head_bytes(200, (("content-type", "application/json"), ("content-length", str(len(body) + missing)))) + body
    )


def never() -> Behaviour:
    """Takes the request and says nothing until the caller leaves."""

    async def answer(call: Call, wire: Wire) -> None:
        await asyncio.Event().wait()

    return answer


def hang_up() -> Behaviour:
    """Closes without a byte: what a caller sees whose idle keep-alive connection was just closed."""
    return raw()


def closing(behaviour: Behaviour) -> Behaviour:
    """The behaviour, and then a close that no `Connection: close` announced."""

    async def answer(call: Call, wire: Wire) -> None:
        await behaviour(call, wire)
        await wire.finish()

    return answer


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """The first behaviour for the first request, and so on; the last one for all that follow."""
    waiting = list(behaviours)

    async def answer(call: Call, wire: Wire) -> None:
        await (waiting.pop(0) if len(waiting) > 1 else waiting[0])(call, wire)

    return answer


def paced(*, events: int, rate: float = 0.0, size: int = 20) -> Behaviour:
    """For load: N chat chunks of `size` characters, `rate` a second (0: at once), each one ready-made write."""
    chunk = chunk_bytes(event(chat_chunk(1, {"content": "x" * size})))
    start = chunk_bytes(event(chat_chunk(1, {"role": "assistant", "content": ""})))
    end = chunk_bytes(event(chat_chunk(1, {}, finish_reason="stop"))) + chunk_bytes(DONE) + LAST_CHUNK
    head = head_bytes(200, STREAM_HEADERS)

    async def answer(call: Call, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        await wire.send(head + start)
        begun = loop.time()
        for count in range(events):
            if rate:
                await asyncio.sleep(begun + count / rate - loop.time())
            await wire.send(chunk)
        await wire.send(end)

    return answer


def gigantic(size: int) -> Behaviour:
    """A whole chat completion with `size` characters of content."""
    return whole_json(chat_completion(1, [{"role": "assistant", "content": "x" * size}]))


async def mirror(call: Call, wire: Wire) -> None:
    """Tells what arrived: method, target, headers in order, and the body as Latin-1."""
    seen = {"method": call.method, "target": call.target, "headers": call.header_list}
    await whole_json(seen | {"body": call.body.decode("latin-1")})(call, wire)


async def chat_model(call: Call, wire: Wire) -> None:
    """Echoes the last user message with the request's number; whole or streamed, `n`, tools and usage as asked."""
    try:
        answer = chat_answer(call, call.json())
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        answer = vllm_error(400, "1 validation error", kind="Bad Request")
    await answer(call, wire)


def chat_answer(call: Call, request: Json) -> Behaviour:
    count = int(request.get("n") or 1)
    tools = request.get("tools") if request.get("tool_choice") not in (None, "none", "auto") else None
    if not request.get("stream"):
        messages = [tool_message(tools[0]) if tools else text_message(call, request) for _ in range(count)]
        return whole_json(chat_completion(call.number, messages, finish="tool_calls" if tools else "stop"))
    events = tool_events(call, tools[0]) if tools else text_events(call, request, count)
    if (request.get("stream_options") or {}).get("include_usage"):
        events = [*events, event(chat_chunk(call.number, None) | {"usage": USAGE})]
    return sse([*events, DONE])


USAGE = {"prompt_tokens": 7, "total_tokens": 12, "completion_tokens": 5}


def text_message(call: Call, request: Json) -> Json:
    return {"role": "assistant", "content": echo_text(call.number, request)}


def tool_message(tool: Json) -> Json:
    function = {"name": tool["function"]["name"], "arguments": '{"city": "Paris"}'}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call-1", "type": "function", "function": function}],
    }


def echo_text(number: int, request: Json) -> str:
    said = [message.get("content") for message in request.get("messages", []) if message.get("role") == "user"]
    return f"echo {number}: {said[-1] if said else ''}"


def text_events(call: Call, request: Json, count: int) -> list[bytes]:
    words = [word + " " for word in echo_text(call.number, request).split(" ")]
    words[-1] = words[-1][:-1]
    deltas: list[Json] = [{"role": "assistant", "content": ""}, *({"content": word} for word in words), {}]
    return [
        event(chat_chunk(call.number, delta, index=index, finish_reason=None if delta else "stop"))
        for delta in deltas
        for index in range(count)
    ]


def tool_events(call: Call, tool: Json) -> list[bytes]:
    start = {"id": "call-1", "type": "function", "index": 0, "function": {"name": tool["function"]["name"]}}
    fragments = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"city"', ': "Par', 'is"}')]
    deltas: list[Json] = [
        {"role": "assistant", "content": ""},
        *({"content": None, "tool_calls": [c]} for c in (start, *fragments)),
    ]
    chunks = [chat_chunk(call.number, delta) for delta in deltas]
    return [event(chunk) for chunk in (*chunks, chat_chunk(call.number, {}, finish_reason="tool_calls"))]


# Bodies and bytes, for tests to build their own.


def dumps(body: object) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def event(body: object) -> bytes:
    return b"data: " + dumps(body) + b"\n\n"


def chat_chunk(number: int, delta: Json | None, *, index: int = 0, finish_reason: str | None = None) -> Json:
    """A chat.completion.chunk; without a delta one without choices."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    head = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1795312204, "model": MODEL}
    return head | {"choices": [] if delta is None else [choice]}


def chat_completion(number: int, messages: Sequence[Json], *, finish: str = "stop") -> Json:
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": finish, "stop_reason": None}
        for index, message in enumerate(messages)
    ]
    head = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1795312204, "model": MODEL}
    return head | {"choices": choices, "usage": USAGE}


def events_of(recorded: bytes) -> list[bytes]:
    """A recorded body's events, each with the empty line that ends it."""
    return [piece + b"\n\n" for piece in recorded.split(b"\n\n") if piece]


def pieces_of(recorded: bytes, split_at: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(split_at), len(recorded)]
    return [recorded[start:end] for start, end in pairwise(edges) if start < end]


# The server.


class FakeUpstream:
    """What a test holds: the address, the behaviours by path, and every request that came."""

    def __init__(self) -> None:
        self.port = 0
        self.calls: list[Call] = []
        self.connections = 0
        self.behaviours: dict[str, Behaviour] = {
            "/v1/chat/completions": chat_model,
            "/v1/models": whole_json(
                {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]}
            ),
            "/health": whole(b""),
            "/version": whole_json({"version": "0.32.0"}),
        }
        self.errors: list[Exception] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def on(self, path: str, behaviour: Behaviour) -> None:
        """From now on `path` (or `*`, for all that have none of their own) behaves so."""
        self.behaviours[path] = behaviour

    def on_all(self, behaviour: Behaviour) -> None:
        """From now on every path behaves so, but /health, which the proxy asks by itself."""
        self.behaviours = {"/health": self.behaviours["/health"], "*": behaviour}

    def calls_to(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.path == path]

    async def until(self, condition: Callable[[], object], *, seconds: float = 10.0) -> None:
        """Wait until a condition on this server holds; TimeoutError if it does not in time."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(reader, Reader)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        wire, connection = Wire(reader, writer), self.connections
        try:
            while wire.keep_alive:
                await self._answer(await self._read(wire, connection=connection), wire)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the caller broke off, or ended an idle connection
        except asyncio.CancelledError:
            writer.transport.abort()
        except Exception as error:  # noqa: BLE001 - a mistake in a test's behaviour fails that test, see close()
            self.errors.append(error)
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _read(self, wire: Wire, *, connection: int) -> Call:
        head = await wire.reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        call = Call(len(self.calls) + 1, connection, method, target, head)
        if target != "/health":  # the proxy asks by itself whether it answers
            self.calls.append(call)
        headers = call.headers
        if headers.get("expect", "").lower() == "100-continue":
            await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in headers.get("transfer-encoding", ""):
            call.body = await read_chunked(wire.reader)
        else:
            call.body = await wire.reader.readexactly(int(headers.get("content-length", 0)))
        wire.keep_alive = headers.get("connection", "").lower() != "close"
        return call

    async def _answer(self, call: Call, wire: Wire) -> None:
        """Answer until done or until the caller leaves: then the answer is broken off, as vLLM does."""
        work = asyncio.ensure_future(self._behaviour(call)(call, wire))
        gone = asyncio.ensure_future(wire.reader.gone.wait())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if wire.ended:
                await asyncio.wait({work})  # it was this side that closed
            if work.done():
                work.result()
                call.answered = time.monotonic()
            else:
                call.left = time.monotonic()
                wire.keep_alive = False
        except OSError:
            call.left = time.monotonic()
            raise
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    def _behaviour(self, call: Call) -> Behaviour:
        wanted = call.headers.get("x-fake")
        if wanted:
            return named(wanted)
        return (
            self.behaviours.get(call.path)
            or self.behaviours.get("*")
            or whole_json({"detail": "Not Found"}, status=404)
        )

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.errors:
            raise ExceptionGroup("the fake upstream's behaviours failed", self.errors)


async def read_chunked(reader: asyncio.StreamReader) -> bytes:
    """A chunked body without its framing."""
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return b"".join(parts)


def named(header: str) -> Behaviour:
    """The behaviour that an `X-Fake` header asks for: `name; key=value; …`, all values numbers."""
    name, *pairs = (part.strip() for part in header.split(";"))
    values = {key.strip(): float(value) for key, _, value in (pair.partition("=") for pair in pairs if pair)}
    number = {key: int(value) for key, value in values.items()}
    events = number.get("events", 10)
    makers: dict[str, Callable[[], Behaviour]] = {
        "stream": lambda: paced(events=events, rate=values.get("rate", 0.0), size=number.get("size", 20)),
        "die": lambda: sse(paced_events(1, limit=events + 1), die_after=events),
        "reset": lambda: sse(paced_events(1, limit=events + 1), die_after=events, reset=True),
        "never": never,
        "garbage": garbage,
        "hang-up": hang_up,
        "both-framings": both_framings,
        "short": short_content_length,
        "closing": lambda: closing(chat_model),
        "mirror": lambda: mirror,
        "error": lambda: vllm_error(number.get("status", 500)),
        "unauthorized": unauthorized,
        "gigantic": lambda: gigantic(number.get("size", 1 << 20)),
    }
    return makers[name]()


def paced_events(number: int, *, limit: int) -> Iterator[bytes]:
    yield event(chat_chunk(number, {"role": "assistant", "content": ""}))
    for count in range(limit):
        yield event(chat_chunk(number, {"content": f"word{count} "}))


@asynccontextmanager
async def fake_upstream(*, port: int = 0) -> AsyncIterator[FakeUpstream]:
    """The server, listening on 127.0.0.1 while the block lasts; whatever it still does is cancelled at the end."""
    upstream = FakeUpstream()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: asyncio.StreamReaderProtocol(Reader(), upstream.serve), "127.0.0.1", port, backlog=1024
    )
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        await upstream.close()


async def main(port: int) -> None:
    async with fake_upstream(port=port) as upstream:
        print("ready", upstream.port, flush=True)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    uvloop.run(main(parser.parse_args().port))  # its own cost must not drown what a load test measures
