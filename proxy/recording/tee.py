"""The only streaming code: upstream's bytes to the caller as they come, and to the recorder on the side.

Nothing is awaited between reading a piece and sending it. In `strict` mode the end of a reply, and only its end, waits
until the exchange is on disk.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.types import Message, Receive, Send

from proxy.downstream.direct_writer import Outlet
from proxy.errors import APIError, too_large
from proxy.recording.recorder import Recorder
from proxy.storage.exchange import Exchange, Outcome, Status
from proxy.upstream.client import Failure, Response, failure
from proxy.wire.chat_reply import Completion, has_token, is_batchable, is_terminator, is_usage_only
from proxy.wire.headers import Headers
from proxy.wire.sse import Decoder

logger = logging.getLogger(__name__)

# Where the connection does not say so by itself, a caller who leaves within the first moments is noticed after them:
# most replies end before, and need no watch.
_WATCH_AFTER_SECONDS = 0.05

# What is held of one stream at most: an event until it is whole, and what follows [DONE].
_EVENT_BYTES = 32 * 2**20

CALLER_LEFT = {"message": "The caller left before the reply had ended.", "type": "caller_disconnected"}
STOPPED = {"message": "The proxy was stopped before the reply had ended.", "type": "interrupted"}


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


class Orphans:
    """The replies that are read to their end though their caller has left: how many, and how many there may be."""

    def __init__(self, *, limit: int = 0) -> None:
        self.limit = limit
        self.count = 0

    def take(self) -> bool:
        """Whether there is room for one more, which then counts."""
        if self.count >= self.limit:
            return False
        self.count += 1
        return True


class Watch:
    """Notices that the caller leaves while its request is worked on, and cancels the work, or lets it finish."""

    def __init__(
        self,
        receive: Receive,
        *,
        outlet: Outlet | None = None,
        orphans: Orphans | None = None,
        after: asyncio.Event | None = None,
    ) -> None:
        """With `orphans` the work finishes where they have room. `after`: somebody else still receives the request's
        body until then."""
        self.has_left = False
        self.has_cancelled = False
        self._orphans = orphans
        self._is_orphan = False
        self._after = after
        self._receive = receive
        task = asyncio.current_task()
        assert task is not None
        self._work: asyncio.Task[Any] | None = task
        self._watching: asyncio.Task[None] | None = None
        self._start: asyncio.TimerHandle | None = None
        self._outlet = outlet if outlet is not None and after is None and outlet.watch(self._leaves) else None
        if self._outlet is None:
            self._start = asyncio.get_running_loop().call_later(_WATCH_AFTER_SECONDS, self._begin)

    def stop(self) -> None:
        """The work is done. What refers to this, and this to it, is let go: else it would wait for the collector."""
        if self._outlet is not None:
            self._outlet.unwatch()
        if self._start is not None:
            self._start.cancel()
        if self._watching is not None:
            self._watching.cancel()
        if self._is_orphan and self._orphans is not None:
            self._orphans.count -= 1
        self._is_orphan = False
        self._outlet = self._start = self._watching = self._work = None

    def _begin(self) -> None:
        self._watching = asyncio.create_task(self._notice(), name="watch")

    async def _notice(self) -> None:
        if self._after is not None:
            await self._after.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leaves()

    def _leaves(self) -> None:
        self.has_left = True
        self._is_orphan = self._orphans is not None and self._orphans.take()
        if not self._is_orphan and self._work is not None:
            self.has_cancelled = True
            self._work.cancel()


class Recording:
    """One exchange on its way to the recorder: what it has streamed, when, and how it ended. Ends once."""

    def __init__(self, recorder: Recorder, exchange: Exchange, *, size: int) -> None:
        self._recorder = recorder
        self._started = time.monotonic()
        self._first_token: float | None = None
        self._has_ended = False
        self.reply = Completion()
        self.live = recorder.open(exchange, self.reply, size=size)
        self.http_status: int | None = None
        self._answered: float | None = None
        self._head: float | None = None
        self.saved: asyncio.Future[Any] | None = None

    @property
    def is_strict(self) -> bool:
        """Whether the caller learns of the end only when it is on disk."""
        return self._recorder.is_strict

    def answered(self, http_status: int) -> None:
        """Upstream's status has come."""
        self.http_status = http_status
        self._answered = time.monotonic()

    def heads_out(self) -> None:
        """All is known that the head of the reply needs."""
        self._head = time.monotonic()

    @property
    def has_token(self) -> bool:
        """Whether the first token has come."""
        return self._first_token is not None

    def take(self, data: bytes) -> None:
        """Fold the data of one event of the stream."""
        if self._first_token is None and has_token(data):
            self._first_token = time.monotonic()
        self.reply.feed(data)

    def take_whole(self, body: bytes) -> None:
        """Take a reply that is not a stream."""
        self.live.size += len(body)
        self.reply = Completion.from_body(body)

    def end_streamed(self) -> asyncio.Future[Any] | None:
        """Upstream's stream is over: whole if every choice says how it finished, cut if not."""
        if self.reply.is_whole:
            return self.end("completed")
        error = self.reply.error
        if error is not None and not self.reply.choices:
            return self.end("failed", error=error)
        return self.end("incomplete", error=error)

    def end_whole(self) -> asyncio.Future[Any] | None:
        """Upstream's reply has come in one piece."""
        is_good = self.http_status is not None and 200 <= self.http_status < 300 and self.reply.error is None
        return self.end("completed" if is_good else "failed", error=None if is_good else self._reason())

    def end(self, status: Status, *, error: Any = None) -> asyncio.Future[Any] | None:
        """The exchange has ended like this. The future says when that is on disk."""
        if self._has_ended:
            return None
        self._has_ended = True
        outcome = Outcome(
            status="completed" if status == "incomplete" and self.reply.is_whole else status,
            http_status=self.http_status,
            reply=self.reply,
            error=error,
            time_to_first_token_ms=self._since_start(self._first_token),
            duration_ms=self._since_start(time.monotonic()),
            upstream_latency_seconds=None if self._answered is None else self._answered - self._started,
            overhead_seconds=None if self._head is None or self._answered is None else self._head - self._answered,
        )
        self.saved = self._recorder.finish(self.live, outcome)
        return self.saved

    def _reason(self) -> Any:
        return self.reply.error or self.reply.to_json_dict() or {"message": "Upstream's reply was not JSON."}

    def _since_start(self, moment: float | None) -> int | None:
        return None if moment is None else round((moment - self._started) * 1000)


class Tee:
    """A stream's bytes: what goes out now, and what is held until its end is on disk."""

    __slots__ = ("_decoder", "_gave_up", "_held", "_hides_usage", "_holds", "_recording", "has_ended")

    def __init__(self, recording: Recording, *, hides_usage: bool) -> None:
        self.has_ended = False  # `[DONE]` has come: nothing is recorded after it
        self._decoder = Decoder()
        self._recording = recording
        self._hides_usage = hides_usage
        self._holds = recording.is_strict
        self._held = bytearray()
        self._gave_up = False

    def feed(self, data: bytes) -> bytes:
        """Record a piece of the stream; the bytes of its whole events that the caller gets at once."""
        reply = self._recording.reply
        if reply.can_batch and is_batchable(data):
            reply.batched.append(data)
            return data
        return self.cut(data)

    def cut(self, data: bytes) -> bytes:
        """The same for a piece that may not wait."""
        recording = self._recording
        if self._gave_up:
            return data
        if not self.has_ended:
            recording.live.feed(data)
        out = []
        for event in self._decoder.feed(data):
            content = event.data
            if content and not self.has_ended:
                recording.take(content)
                if is_terminator(content):
                    self.has_ended = True
                elif self._hides_usage and is_usage_only(content):
                    continue
            if self.has_ended and self._holds:
                self._held += event.raw
            else:
                out.append(event.raw)
        if self._decoder.pending > _EVENT_BYTES or len(self._held) > _EVENT_BYTES:
            out.append(self._give_up())
        # Between two events, past the first token and before the end, what may wait goes out as it is.
        is_between = not self._decoder.pending and not self.has_ended
        recording.reply.can_batch = is_between and recording.has_token and recording.reply.is_ordinary
        return out[0] if len(out) == 1 else b"".join(out)

    def release(self) -> bytes:
        """What was held; nothing is from now on."""
        held, self._held, self._holds = bytes(self._held), bytearray(), False
        return held

    def rest(self) -> bytes:
        """What is left when upstream has ended: the held end, and an event that was not finished."""
        return b"" if self._gave_up else self.release() + self._decoder.rest

    def _give_up(self) -> bytes:
        """This is no event stream, or does not stop after its end: from here on it passes as it is, unrecorded."""
        logger.warning("a stream has an event of more than %d bytes: its rest is not recorded", _EVENT_BYTES)
        rest = self.rest()
        self._gave_up = True
        return rest


async def send_streamed(
    response: Response,
    send: Send,
    recording: Recording,
    *,
    headers: Headers,
    hides_usage: bool,
    watch: Watch,
    outlet: Outlet | None,
) -> None:
    """Relay an event stream while recording it."""
    tee = Tee(recording, hides_usage=hides_usage)
    await _start(send, response, headers)
    try:
        if outlet is not None and outlet.is_open:
            await _push(response, outlet, send, recording, tee, watch)
        else:
            await _pull(response, send, recording, tee, watch)
    except Failure as exc:
        await _send_cut(send, recording, failure(exc), rest=tee.rest(), headers=headers)
        return
    await committed(recording, recording.end_streamed())
    await send({"type": "http.response.body", "body": tee.rest(), "more_body": False})


async def _push(response: Response, outlet: Outlet, send: Send, recording: Recording, tee: Tee, watch: Watch) -> None:
    """The event loop's own call with a piece of the stream writes it to the caller: no task runs between them."""
    reply, write = recording.reply, outlet.write
    wait = reply.batched.append

    def sink(data: bytes) -> bool:
        if reply.can_batch and is_batchable(data):  # as in `feed`, for a call less a token
            wait(data)
            return write(data)
        out = tee.cut(data)
        keeps_up = write(out) if out else True
        return keeps_up and (not tee.has_ended or recording.saved is not None)

    while not await response.pump(sink):
        if tee.has_ended and recording.saved is None:
            await _send_end(response, send, recording, tee, watch)
        await outlet.drain()


async def _pull(response: Response, send: Send, recording: Recording, tee: Tee, watch: Watch) -> None:
    """The way of every server and client: a piece is read, and then sent."""
    while data := await response.read():
        out = tee.feed(data)
        if out and not watch.has_left:
            await send({"type": "http.response.body", "body": out, "more_body": True})
        if tee.has_ended and recording.saved is None:
            await _send_end(response, send, recording, tee, watch)


async def _send_end(response: Response, send: Send, recording: Recording, tee: Tee, watch: Watch) -> None:
    """Send `[DONE]` when the exchange is on disk, whether or not upstream ends its response after it."""
    await committed(recording, recording.end_streamed())
    if response.is_over:
        return  # then it goes out with the end of the response
    held = tee.release()
    if held and not watch.has_left:
        await send({"type": "http.response.body", "body": held, "more_body": True})


async def send_whole(
    response: Response, send: Send, recording: Recording, *, headers: Headers, outlet: Outlet | None
) -> None:
    """Relay a reply that is not a stream: its body is the end, and goes out when it is on disk.

    Raises UpstreamError where upstream dies within it: nothing has gone out yet.
    """
    body = response.read_whole_nowait()
    if body is None:
        body = await _read_whole(response)
    recording.take_whole(body)
    await committed(recording, recording.end_whole())
    await _send_at_once(response, send, body, headers=headers, outlet=outlet)


async def _read_whole(response: Response) -> bytes:
    pieces = []
    try:
        while data := await response.read():
            pieces.append(data)
    except Failure as exc:
        raise failure(exc) from exc
    return b"".join(pieces)


async def send_unrecorded(response: Response, send: Send, *, headers: Headers, outlet: Outlet | None) -> None:
    """Relay any reply as it comes. Where upstream dies, the caller's connection ends as abruptly."""
    body = response.read_whole_nowait()
    if body is not None:
        await _send_at_once(response, send, body, headers=headers, outlet=outlet)
        return
    await _start(send, response, headers)
    try:
        if outlet is not None and outlet.is_open:
            while not await response.pump(outlet.write):
                await outlet.drain()
        else:
            while data := await response.read():
                await send({"type": "http.response.body", "body": data, "more_body": True})
    except Failure as exc:
        logger.warning("a reply was cut: %s", failure(exc))
        return
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_at_once(
    response: Response, send: Send, body: bytes, *, headers: Headers, outlet: Outlet | None
) -> None:
    if outlet is not None and outlet.answer(send, response.status, headers, body):
        return
    await _start(send, response, headers)
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _start(send: Send, response: Response, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": response.status, "headers": headers})


async def _send_cut(send: Send, recording: Recording, error: APIError, *, rest: bytes, headers: Headers) -> None:
    """Say in the stream that upstream died, and save what had come. A response without an end closes its connection."""
    saved = recording.end("incomplete", error=error.as_json()["error"])
    await committed(recording, saved)
    if not any(name == b"content-length" for name, _ in headers):
        event = b"data: " + orjson.dumps(error.as_json()) + b"\n\n"
        # An event that was cut in the middle is ended first, so that ours is one of its own.
        await send({"type": "http.response.body", "body": (rest + b"\n\n" if rest else b"") + event, "more_body": True})


async def committed(recording: Recording, saved: asyncio.Future[Any] | None) -> None:
    """In strict mode, wait until the end of the exchange is on disk."""
    # Whoever leaves while waiting cancels the future, and not the write: nobody is left to be told of it.
    if saved is not None and recording.is_strict and not saved.cancelled():
        await saved
