"""Streams JSON responses with branches or exchanges, so that memory use does not depend on their length."""

from collections.abc import AsyncIterator, Iterable
from email.utils import formatdate
from functools import partial
from typing import Any

from starlette.responses import Response, StreamingResponse

from proxy.errors import NotFoundError
from proxy.history import branches as recorded
from proxy.history import exchange_list
from proxy.history.branches import OpenPage, Show
from proxy.history.serializers import JSON, message_json
from proxy.services import Services
from proxy.storage.page import Page
from proxy.wire import json_text

LINES = "application/x-ndjson"


def json_response(content: AsyncIterator[str]) -> Response:
    """A JSON response streamed in chunks."""
    return StreamingResponse(content, media_type="application/json", headers={"date": formatdate(usegmt=True)})


def lines_response(content: AsyncIterator[str]) -> Response:
    """A response with one JSON text per line."""
    return StreamingResponse(content, media_type=LINES, headers={"date": formatdate(usegmt=True)})


async def history(services: Services, user: JSON, session_ids: Iterable[str], *, total: int) -> AsyncIterator[str]:
    """`{user, sessions: [{..., messages: [...]}], total}`."""
    yield f'{{"user":{json_text.dumps(user)},"sessions":['
    comma = ""
    async for piece, is_start in _sessions(services, session_ids, user_id=user["user_id"]):
        yield comma + piece if is_start else piece
        comma = ","
    yield f'],"total":{total}}}'


async def history_lines(services: Services, session_ids: Iterable[str], *, user_id: str) -> AsyncIterator[str]:
    """One session with its messages per line."""
    newline = ""
    async for piece, is_start in _sessions(services, session_ids, user_id=user_id):
        yield newline + piece if is_start else piece
        newline = "\n"
    yield newline


async def branch(
    services: Services, session: JSON, numbers: list[int], *, show: Show = message_json
) -> AsyncIterator[str]:
    """`{...session, messages: [...]}`."""
    yield json_text.dumps(session)[:-1] + ',"messages":['
    async for piece in _messages(services, numbers, show=show):
        yield piece
    yield "]}"


async def page_response(services: Services, found: OpenPage, *, name: str, **others: Any) -> Response:
    """`{name: [...messages], ...others}`; streamed if it is larger than one chunk."""
    return await _list_response(_messages(services, found.numbers, show=found.show), name=name, **others)


async def exchanges_response(
    services: Services, session_id: str, *, page: Page, names_upstreams: bool, total: int
) -> Response:
    """`{exchanges: [...], total}`; streamed if it is larger than one chunk."""
    pieces = _exchanges(services, session_id, page=page, names_upstreams=names_upstreams)
    return await _list_response(pieces, name="exchanges", total=total)


async def _list_response(pieces: AsyncIterator[str], *, name: str, **others: Any) -> Response:
    first = await anext(pieces, "")
    # Two pieces are read before the status is sent: an error in them is still a proper response, and a page of one
    # piece gets a Content-Length.
    second = await anext(pieces, None)

    async def texts() -> AsyncIterator[str]:
        yield f'{{"{name}":[' + first
        if second is not None:
            yield second
        async for piece in pieces:
            yield piece
        yield "]," + json_text.dumps(others)[1:]

    if second is not None:
        return json_response(texts())
    whole = "".join([text async for text in texts()])
    return Response(whole, media_type="application/json", headers={"date": formatdate(usegmt=True)})


async def _exchanges(services: Services, session_id: str, *, page: Page, names_upstreams: bool) -> AsyncIterator[str]:
    """Exchanges separated by commas. Occupies a database reader only while a chunk is read."""
    rest: Page | None = page
    comma = ""
    while rest is not None:
        work = partial(exchange_list.read_piece, session_id=session_id, page=rest, names_upstreams=names_upstreams)
        texts, rest = await services.read(work)
        if texts:
            yield comma + ",".join(texts)
            comma = ","


async def _messages(services: Services, numbers: list[int], *, show: Show) -> AsyncIterator[str]:
    """Messages separated by commas. Occupies a database reader only while a chunk is read."""
    position, comma = 0, ""
    while position < len(numbers):
        texts, position = await services.read(partial(recorded.read_piece, numbers=numbers, start=position, show=show))
        if texts:
            yield comma + ",".join(texts)
            comma = ","


async def _sessions(services: Services, session_ids: Iterable[str], *, user_id: str) -> AsyncIterator[tuple[str, bool]]:
    """The JSON text of sessions in chunks; the flag marks the first chunk of a session."""
    for session_id in session_ids:
        try:
            session, numbers = await services.read(partial(recorded.open_branch, id_=session_id, user_id=user_id))
        except NotFoundError:
            continue  # deleted after the list was read
        is_start = True
        async for piece in branch(services, session, numbers):
            yield piece, is_start
            is_start = False
