"""`/ui/search`: search as you type; each hit links to its message in the conversation."""

from functools import partial
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from proxy.errors import APIError
from proxy.search.deadline import Deadline
from proxy.search.engines import search
from proxy.search.query import ORDERS, QUERY_LENGTH_MAX, Found, Query
from proxy.web.parts import Pieces
from proxy.web.visits import Visit

JSON = dict[str, Any]

_PAGE = 20
_OFFSET_MAX = 10_000  # each page before it is searched again
_ROLES = ("user", "assistant", "system", "developer", "tool", "function")


async def search_messages(visit: Visit) -> Response:
    """The search form and its results."""
    given = visit.query
    text = given.get("q", "")[:QUERY_LENGTH_MAX]
    role = given.get("role") if given.get("role") in _ROLES else None
    order = next((each for each in ORDERS if each == given.get("order")), ORDERS[0])
    offset = visit.whole_number("offset", most=_OFFSET_MAX)
    hits: list[JSON] = []
    has_more, problem = False, None
    if text.strip():
        query = Query(text=text, user_id=visit.user_id, role=role)
        await visit.services.recorder.writer.flushed()
        work = partial(_search, visit, query, offset=offset, order=order)
        try:
            hits, has_more = await visit.services.searches.run(visit.visitor.user_id, work)
        except APIError as exc:
            problem = exc.message
    following = {name: value for name, value in given.items() if name != "offset"} | {"offset": str(offset + _PAGE)}
    return await visit.page(
        "search.html",
        query=text if text.strip() else None,
        role=role,
        order=order,
        hits=hits,
        first=offset + 1,
        more=f"/ui/search?{urlencode(following)}" if has_more else None,
        problem=problem,
    )


def _search(visit: Visit, query: Query, deadline: Deadline, *, offset: int, order: Any) -> tuple[list[JSON], bool]:
    found, has_more = search(visit.services.settings, query, limit=_PAGE, offset=offset, order=order, deadline=deadline)
    return [_hit(each, query.text) for each in found], has_more


def _hit(found: Found, text: str) -> JSON:
    return {
        "session_id": found.session.session_id,
        "title": found.session.title,
        "user_id": found.session.user_id,
        "message_id": found.message["message_id"],
        "role": found.message["role"],
        "model": found.message["model"],
        "created_at": found.message["created_at"],
        "snippet": pieces_of(found.hit.snippet, text),
    }


def pieces_of(snippet: str, text: str) -> Pieces:
    """Splits a snippet at its hit, which is marked with `**`; the message itself may contain `**` as well."""
    needle = text.casefold()
    start = snippet.find("**")
    while start >= 0:
        end = snippet.find("**", start + 2)
        while end >= 0 and len(snippet[start + 2 : end].casefold()) <= len(needle):
            if snippet[start + 2 : end].casefold() == needle:
                pieces = [(snippet[:start], False), (snippet[start + 2 : end], True), (snippet[end + 2 :], False)]
                return [piece for piece in pieces if piece[0]]
            end = snippet.find("**", end + 1)
        start = snippet.find("**", start + 1)
    return [(snippet, False)]
