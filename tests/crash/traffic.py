"""Chats against the proxy: a deterministic upstream that logs what it sends, and callers that log what they see."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.crash.ledger import Chat
from tests.fake_upstream import (
    DONE,
    LAST_CHUNK,
    STREAM_HEADERS,
    Behaviour,
    Call,
    Wire,
    chat_chunk,
    chat_completion,
    chunk_bytes,
    dumps,
    event,
    head_bytes,
)


class Script:
    """What upstream says in each chat, made of the seed and the chat's name."""

    def __init__(self, seed: int, *, longest: int = 150) -> None:
        self.seed = seed
        self.longest = longest
        self.chats: dict[str, Chat] = {}

    def words(self, chat: Chat) -> list[tuple[float, str]]:
        """The reply's words, and the pause before each."""
        dice = random.Random(f"{self.seed} {chat.name}")
        count = dice.choice((3, 10, 40, self.longest))
        first = dice.choice((0.0, 0.0, 0.02, 1.5))
        pause = dice.choice((0.002, 0.01, 0.03))
        return [(first if number == 0 else pause, f"{chat.name}:{number} ") for number in range(count)]

    def add(self, chat: Chat) -> Chat:
        """Make a chat known to upstream."""
        chat.text = "".join(word for _, word in self.words(chat))
        self.chats[chat.name] = chat
        return chat

    def behaviour(self) -> Behaviour:
        """Upstream's side of all chats."""

        async def answer(call: Call, wire: Wire) -> None:
            request = call.json()
            chat = self.chats[request["messages"][-1]["content"]]
            if request.get("stream"):
                await self._stream(chat, wire)
            else:
                await self._whole(chat, wire)

        return answer

    async def _stream(self, chat: Chat, wire: Wire) -> None:
        await wire.send(head_bytes(200, STREAM_HEADERS) + chunk_bytes(event(chat_chunk(1, {"role": "assistant"}))))
        for pause, word in self.words(chat):
            await asyncio.sleep(pause)
            await wire.chunk(event(chat_chunk(1, {"content": word})))
            chat.pieces.append((time.monotonic(), word))
        end = event(chat_chunk(1, {}, finish_reason="stop"))
        await wire.send(chunk_bytes(end) + chunk_bytes(DONE) + LAST_CHUNK)
        chat.held_seconds = -time.monotonic()

    async def _whole(self, chat: Chat, wire: Wire) -> None:
        await asyncio.sleep(sum(pause for pause, _ in self.words(chat)))
        body = dumps(chat_completion(1, [{"role": "assistant", "content": chat.text}]))
        chat.pieces.append((time.monotonic(), chat.text))
        await wire.send(
            head_bytes(200, (("content-type", "application/json"), ("content-length", str(len(body))))) + body
        )
        chat.held_seconds = -time.monotonic()


async def talk(port: int, chat: Chat, *, cut_after: int | None = None) -> None:
    """Send the chat and read its reply to the end, to where the connection breaks, or to a byte of the body."""
    received = bytearray()
    chat.was_cut = cut_after is not None
    with suppress(OSError):
        async with connected(port) as (reader, writer):
            writer.write(request_bytes(chat))
            await writer.drain()
            chat.sent_at = time.monotonic()
            try:
                await _receive(reader, received, cut_after=cut_after)
            finally:
                chat.ended_at = time.monotonic()
                take_reply(chat, bytes(received))


async def _receive(reader: asyncio.StreamReader, received: bytearray, *, cut_after: int | None) -> None:
    while data := await reader.read(65536 if cut_after is None else cut_after - len(received)):
        received += data
        if cut_after is not None and len(received) >= cut_after:
            return
        if _is_over(received):
            return


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is reset at the end of the block, whose socket is closed when that is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def status_of(port: int, path: str) -> int:
    """The status of a GET."""
    try:
        async with connected(port) as (reader, writer):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n".encode())
            return int((await reader.readline()).split()[1])
    except (OSError, IndexError):
        return 0


def request_bytes(chat: Chat) -> bytes:
    """The request, with the history before it."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You are a test."}]
    earlier: list[Chat] = []
    before = chat.before
    while before is not None:
        earlier.append(before)
        before = before.before
    for each in reversed(earlier):
        messages += [{"role": "user", "content": each.name}, {"role": "assistant", "content": each.text}]
    body = dumps(
        {"model": "m", "messages": [*messages, {"role": "user", "content": chat.name}], "stream": chat.is_streamed}
    )
    session = f"X-Session-Id: {chat.session}\r\n" if chat.session else ""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: proxy\r\nContent-Type: application/json\r\n"
        f"{session}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def take_reply(chat: Chat, received: bytes) -> None:
    """What the caller was told, and whether it saw the end."""
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return
    lines = head.decode("latin-1").split("\r\n")
    chat.status = int(lines[0].split(" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    chat.session_id = headers.get("x-session-id")
    if "content-length" in headers:
        is_over = len(body) >= int(headers["content-length"])
    else:
        body, is_over = dechunked(body)
    if chat.status != 200:
        return
    if chat.is_streamed:
        events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
        is_over = is_over and bool(events) and events[-1] == b"[DONE]"
        chat.seen = "".join(map(_content, events))
    elif is_over:
        chat.seen = json.loads(body)["choices"][0]["message"]["content"]
    chat.is_acknowledged = is_over
    if is_over and chat.ended_at is not None:
        chat.held_seconds += chat.ended_at


def dechunked(data: bytes) -> tuple[bytes, bool]:
    """A chunked body without its framing, as far as it came, and whether its end did."""
    body, offset = bytearray(), 0
    while (end := data.find(b"\r\n", offset)) >= 0:
        size = int(data[offset:end], 16)
        if size == 0:
            return bytes(body), data[end:].startswith(b"\r\n\r\n")
        body += data[end + 2 : end + 2 + size]
        offset = end + 2 + size + 2
    return bytes(body), False


def _is_over(received: bytearray) -> bool:
    return received.endswith(b"\r\n0\r\n\r\n")


def _content(data: bytes) -> str:
    try:
        chunk = json.loads(data)
    except ValueError:
        return ""
    content: str = chunk["choices"][0]["delta"].get("content", "") if chunk.get("choices") else ""
    return content or ""


class Crowd:
    """Callers that chat without a pause until they are stopped; each goes on in its session now and then."""

    def __init__(self, script: Script, *, callers: int, label: str) -> None:
        self._script = script
        self._callers = callers
        self._label = label
        self._dice = random.Random(f"{script.seed} {label}")
        self._count = 0
        self._is_stopped = False
        self._tasks: list[asyncio.Task[None]] = []
        self.chats: list[Chat] = []
        self.port: Callable[[], int] = lambda: 0

    def start(self, port: int) -> None:
        """Begin to chat."""
        self._tasks = [asyncio.create_task(self._chat_on(port, number)) for number in range(self._callers)]

    async def stop(self) -> None:
        """Begin no more chats, and wait until those that are open have ended."""
        self._is_stopped = True
        await asyncio.gather(*self._tasks)

    async def _chat_on(self, port: int, number: int) -> None:
        last: Chat | None = None
        while not self._is_stopped:
            chat = self._next(last)
            await talk(port, chat)
            if chat.is_acknowledged:
                last = chat
            else:
                last = None
                await asyncio.sleep(0.05)

    def _next(self, last: Chat | None) -> Chat:
        self._count += 1
        name = f"{self._label}-{self._count}"
        chat = Chat(name, is_streamed=self._dice.random() < 0.7)
        if last is not None and self._dice.random() < 0.4:
            chat.before, chat.session = last, last.session
        elif self._dice.random() < 0.5:
            chat.session = f"session-{name}"
        self.chats.append(chat)
        return self._script.add(chat)
