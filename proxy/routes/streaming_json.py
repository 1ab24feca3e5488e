"""Streams JSON responses that contain whole branches, so that memory use does not depend on their length."""

from collections.abc import AsyncIterator, Callable, Iterable
from email.utils import formatdate
from functools import partial

from starlette.responses import Response, StreamingResponse

from proxy.errors import NotFoundError
from proxy.history import branches as recorded
from proxy.history.serializers import JSON
from proxy.services import Services
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
    services: Services, session: JSON, numbers: list[int], *, change: Callable[[JSON], JSON]
) -> AsyncIterator[str]:
    """`{...session, messages: [...]}`. Holds a database reader only while a chunk is read."""
    yield json_text.dumps(session)[:-1] + ',"messages":['
    position, comma = 0, ""
    while position < len(numbers):
        texts, position = await services.read(
            partial(recorded.read_piece, numbers=numbers, start=position, change=change)
        )
        if texts:
            yield comma + ",".join(texts)
            comma = ","
    yield "]}"


async def _sessions(services: Services, session_ids: Iterable[str], *, user_id: str) -> AsyncIterator[tuple[str, bool]]:
    """The JSON text of sessions in chunks; the flag marks the first chunk of a session."""
    for session_id in session_ids:
        try:
            session, numbers = await services.read(partial(recorded.open_branch, id_=session_id, user_id=user_id))
        except NotFoundError:
            continue  # deleted after the list was read
        is_start = True
        async for piece in branch(services, session, numbers, change=dict):
            yield piece, is_start
            is_start = False
