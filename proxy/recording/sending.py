"""Sends upstream's reply to the caller: a recorded stream, a recorded whole reply, or one that is not recorded.

Nothing is awaited between reading a piece and sending it. In `strict` mode the end of a reply, and only its end, waits
until the exchange is on disk.
"""

import asyncio
import logging

from starlette.types import Send

from proxy.downstream.direct_writer import Outlet
from proxy.downstream.disconnect import Watch
from proxy.errors import APIError
from proxy.recording.one_exchange import Recording, committed
from proxy.recording.tee import TOO_LARGE, EncodedTee, Tee
from proxy.upstream.client import Response
from proxy.upstream.failure import Failure, failure
from proxy.wire.content_coding import Decoding
from proxy.wire.headers import Headers

logger = logging.getLogger(__name__)

_SLICE_BYTES = 8 * 2**10
_WHOLE_BYTES = 64 * 2**20  # a larger reply passes, and its exchange says so


async def send_streamed(
    response: Response,
    send: Send,
    recording: Recording,
    *,
    headers: Headers,
    hides_usage: bool,
    watch: Watch,
    outlet: Outlet | None,
    first: bytes = b"",
    decoding: Decoding | None = None,
) -> None:
    """Relay an event stream while recording it. `first` has been read of it; `decoding` reads a compressed one."""
    tee = Tee(recording, hides_usage=hides_usage) if decoding is None else EncodedTee(recording, decoding)
    await _start(send, response, headers)
    try:
        if first:
            await _pass_in_slices(first, response, send, recording, tee, watch)
        if outlet is not None and outlet.is_open:
            await _push(response, outlet, send, recording, tee, watch)
        else:
            await _pull(response, send, recording, tee, watch)
    except Failure as exc:
        await _send_cut(send, recording, failure(exc), rest=tee.rest(), headers=headers)
        return
    tee.finish()
    await committed(recording, recording.end_streamed())
    await send({"type": "http.response.body", "body": tee.rest(), "more_body": False})


async def _pass_in_slices(
    data: bytes, response: Response, send: Send, recording: Recording, tee: Tee, watch: Watch
) -> None:
    """A large piece may hold many thousand events: others get their turn between two slices of it."""
    for start in range(0, len(data), _SLICE_BYTES):
        out = tee.feed(data[start : start + _SLICE_BYTES])
        if out and not watch.has_left:
            await send({"type": "http.response.body", "body": out, "more_body": True})
        if tee.has_ended and recording.saved is None:
            await _send_end(response, send, recording, tee, watch)
        await asyncio.sleep(0)


async def _push(response: Response, outlet: Outlet, send: Send, recording: Recording, tee: Tee, watch: Watch) -> None:
    """The event loop's own call with a piece of the stream writes it to the caller: no task runs between them."""
    reply, write = recording.reply, outlet.write
    large: list[bytes] = []
    wait, is_batchable = reply.batched.append, reply.is_batchable

    def sink(data: bytes) -> bool:
        if reply.can_batch and is_batchable(data):  # as in `feed`, for a call less a token
            wait(data)
            return write(data)
        if len(data) > _SLICE_BYTES:
            large.append(data)
            return False
        out = tee.cut(data)
        keeps_up = write(out) if out else True
        return keeps_up and (not tee.has_ended or recording.saved is not None)

    while not await response.pump(sink):
        if large:
            await _pass_in_slices(large.pop(), response, send, recording, tee, watch)
        if tee.has_ended and recording.saved is None:
            await _send_end(response, send, recording, tee, watch)
        await outlet.drain()


async def _pull(response: Response, send: Send, recording: Recording, tee: Tee, watch: Watch) -> None:
    """The way of every server and client: a piece is read, and then sent."""
    while data := await response.read():
        await _pass_in_slices(data, response, send, recording, tee, watch)


async def _send_end(response: Response, send: Send, recording: Recording, tee: Tee, watch: Watch) -> None:
    """Send `[DONE]` when the exchange is on disk, whether or not upstream ends its response after it."""
    await committed(recording, recording.end_streamed())
    if response.is_over:
        return  # then it goes out with the end of the response
    held = tee.release()
    if held and not watch.has_left:
        await send({"type": "http.response.body", "body": held, "more_body": True})


async def send_whole(
    response: Response,
    send: Send,
    recording: Recording,
    *,
    headers: Headers,
    outlet: Outlet | None,
    first: bytes = b"",
    decoding: Decoding | None = None,
) -> None:
    """Relay a reply that is not a stream: its body is the end, and goes out when it is on disk.

    Raises UpstreamError where upstream dies within it: nothing has gone out yet.
    """
    body = None if first else response.read_whole_nowait()
    if body is None:
        body = await _read_whole(response, first)
    if len(body) > _WHOLE_BYTES:
        recording.trouble = TOO_LARGE
        recording.begins(body)
        await committed(recording, recording.end_whole())
        await _start(send, response, headers)
        await send({"type": "http.response.body", "body": body, "more_body": True})
        body = b""  # only what has been read so far was held
        await _send_rest(response, send, outlet)
        return
    recording.take_whole(_decoded(body, decoding, recording))
    await committed(recording, recording.end_whole())
    await _send_at_once(response, send, body, headers=headers, outlet=outlet)


def _decoded(body: bytes, decoding: Decoding | None, recording: Recording) -> bytes:
    """What a compressed reply holds, for the record."""
    if decoding is None:
        return body
    try:
        return decoding.decode(body)
    except ValueError as exc:
        recording.trouble = {"message": f"The reply could not be decoded: {exc}", "type": "reply_not_decoded"}
        return b""


async def _read_whole(response: Response, first: bytes) -> bytes:
    """The body, or what has come of it when it turns out to be too large to keep."""
    pieces = [first]
    length = len(first)
    try:
        while length <= _WHOLE_BYTES and (data := await response.read()):
            pieces.append(data)
            length += len(data)
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
    await _send_rest(response, send, outlet)


async def _send_rest(response: Response, send: Send, outlet: Outlet | None) -> None:
    """Pass what is left of a reply. Where upstream dies, the caller's connection ends as abruptly."""
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
        event = recording.endpoint.error_event(error.as_json()["error"])
        # An event that was cut in the middle is ended first, so that ours is one of its own.
        await send({"type": "http.response.body", "body": (rest + b"\n\n" if rest else b"") + event, "more_body": True})
