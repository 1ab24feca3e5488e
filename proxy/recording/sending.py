"""Sends upstream's reply to the caller: as a recorded stream, a recorded whole reply, or unrecorded.

Nothing is awaited between reading a chunk and sending it. In `strict` mode only the end of a reply waits until the
exchange is on disk.
"""

import asyncio
import logging
from functools import partial

from starlette.types import Send

from proxy.downstream.direct_writer import Outlet
from proxy.downstream.disconnect import Watch
from proxy.errors import APIError
from proxy.recording import large_replies
from proxy.recording.large_replies import LARGE_BYTES, in_thread
from proxy.recording.one_exchange import Recording, committed
from proxy.recording.tee import EncodedTee, Tee
from proxy.upstream.client import Response
from proxy.upstream.failure import Failure, failure
from proxy.wire.content_coding import Decoding
from proxy.wire.headers import Headers

logger = logging.getLogger(__name__)

_SLICES_AT_ONCE = 8  # of a large chunk; then a pause after each
_REST_SECONDS = 0.001
_WHOLE_BYTES = 64 * 2**20  # a larger reply is relayed but not recorded, and its exchange says so


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
    """Relays and records an event stream. `first` was already read from it; `decoding` decodes a compressed one."""
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
        # Terminates an incomplete event, for the record and for the caller, before the error is sent.
        await _finish(tee)
        await _send_cut(send, recording, failure(exc), rest=tee.rest(), headers=headers)
        return
    await _finish(tee)
    await committed(recording, recording.end_streamed())
    await send({"type": "http.response.body", "body": tee.rest(), "more_body": False})


async def _pass_in_slices(
    data: bytes, response: Response, send: Send, recording: Recording, tee: Tee, watch: Watch
) -> None:
    """Splits a large chunk, which may contain thousands of events, and lets other tasks run between the slices."""
    recording.reply.can_batch = False
    for number, piece in enumerate(tee.slices(data)):
        tee.note(piece)
        out = await in_thread(partial(tee.fold, piece)) if tee.may_end_large(piece) else tee.fold(piece)
        if out and not watch.has_left:
            await send({"type": "http.response.body", "body": out, "more_body": True})
        if tee.has_ended and recording.saved is None:
            await _send_end(response, send, recording, tee, watch)
        # The threads that store chats need the GIL, too: beside a flood of events, commits took 150 instead of 15 ms.
        await asyncio.sleep(0 if number < _SLICES_AT_ONCE else _REST_SECONDS)
    if (out := tee.after(data)) and not watch.has_left:
        await send({"type": "http.response.body", "body": out, "more_body": True})


async def _finish(tee: Tee) -> None:
    if tee.is_large:
        await in_thread(tee.finish)
    else:
        tee.finish()


async def _push(response: Response, outlet: Outlet, send: Send, recording: Recording, tee: Tee, watch: Watch) -> None:
    """Fast path: the event loop's read callback writes each chunk to the caller; no other task runs in between."""
    reply, write = recording.reply, outlet.write
    large: list[bytes] = []
    wait, is_batchable = reply.batched.append, reply.is_batchable

    def sink(data: bytes) -> bool:
        if reply.can_batch and is_batchable(data):  # same as in `feed`, inlined to save a call per token
            wait(data)
            return write(data)
        if not tee.fits(data):
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
    """Standard path, for any server and client: reads a chunk, then sends it."""
    while data := await response.read():
        await _pass_in_slices(data, response, send, recording, tee, watch)


async def _send_end(response: Response, send: Send, recording: Recording, tee: Tee, watch: Watch) -> None:
    """Sends `[DONE]` as soon as the exchange is on disk, even if upstream has not closed its response yet."""
    await committed(recording, recording.end_streamed())
    if response.is_over:
        return  # it is sent together with the end of the response
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
    """Relays a non-streamed reply. Its body is the end of the exchange, so it is sent once it is on disk.

    Raises UpstreamError if upstream fails before the body is complete; nothing has been sent by then.
    """
    body = None if first else response.read_whole_nowait()
    if body is None:
        body = await _read_whole(response, first)
    if len(body) > _WHOLE_BYTES:
        recording.trouble = large_replies.too_large(_WHOLE_BYTES, "bytes")
        recording.begins(body)
        await committed(recording, recording.end_whole())
        await _start(send, response, headers)
        await send({"type": "http.response.body", "body": body, "more_body": True})
        body = b""  # release the buffer: only what has been read so far was kept
        await _send_rest(response, send, outlet)
        return
    if len(body) > LARGE_BYTES or decoding is not None:
        await in_thread(partial(_take_whole, body, decoding, recording))
    else:
        recording.take_whole(body)
    await committed(recording, recording.end_whole())
    await _send_at_once(response, send, body, headers=headers, outlet=outlet)


def _take_whole(body: bytes, decoding: Decoding | None, recording: Recording) -> None:
    text = _decoded(body, decoding, recording)
    if len(text) > LARGE_BYTES and large_replies.has_too_many_values(text):
        recording.trouble = large_replies.TOO_MANY_VALUES
        recording.begins(text)
    else:
        recording.take_whole(text)


def _decoded(body: bytes, decoding: Decoding | None, recording: Recording) -> bytes:
    """Decodes a compressed reply for the record."""
    if decoding is None:
        return body
    try:
        return b"".join(decoding.pieces(body))
    except ValueError as exc:
        recording.trouble = large_replies.not_decoded(exc)
        return b""


async def _read_whole(response: Response, first: bytes) -> bytes:
    """Reads the body; stops with what has arrived if it is too large to keep."""
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
    """Relays a reply without recording. If upstream fails, the caller's connection closes before the end of the
    reply."""
    body = response.read_whole_nowait()
    if body is not None:
        await _send_at_once(response, send, body, headers=headers, outlet=outlet)
        return
    await _start(send, response, headers)
    await _send_rest(response, send, outlet)


async def _send_rest(response: Response, send: Send, outlet: Outlet | None) -> None:
    """Relays the rest of a reply. If upstream fails, the caller's connection closes before the end of the reply."""
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
    """Sends an error event because upstream failed, and saves what arrived.

    Without a final chunk the connection closes.
    """
    saved = recording.end("incomplete", error=error.as_json()["error"])
    await committed(recording, saved)
    if not any(name == b"content-length" for name, _ in headers):
        event = recording.endpoint.error_event(error.as_json()["error"])
        # Terminate an event that was cut in the middle, so that the error is a separate event.
        await send({"type": "http.response.body", "body": (rest + b"\n\n" if rest else b"") + event, "more_body": True})
