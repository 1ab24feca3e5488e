"""Lists a session's exchanges, which may be large, in pieces of about a megabyte."""

from dataclasses import replace

from proxy.errors import InvalidRequestError
from proxy.history.branches import find_session
from proxy.history.serializers import exchange_json
from proxy.ids import made_at
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.page import Page
from proxy.wire import json_text

# Parameters and metadata may have tens of kilobytes each, and a page 1,000 exchanges.
_PIECE_BYTES = 2**20
# Exchanges per query: its rows are in memory together.
_STEP = 50


def open_exchanges(connection: Connection, id_: str, *, user_id: str | None, page: Page) -> tuple[str, int]:
    """The session's own id, and how many exchanges it has. Raises NotFoundError, InvalidRequestError."""
    session = find_session(connection, id_, user_id=user_id)
    if page.after is not None:
        before = queries.exchanges.get_exchange(connection, page.after)
        is_deleted = before is None and made_at(page.after) is not None
        if not is_deleted and (before is None or before.session_id != session.session_id):
            raise InvalidRequestError("There is no such exchange in this session.", param="after")
    return session.session_id, queries.exchanges.count_exchanges(connection, session.session_id)


def read_piece(
    connection: Connection, session_id: str, *, page: Page, names_upstreams: bool = False
) -> tuple[list[str], Page | None]:
    """JSON texts of the next exchanges in storage order, and the rest of the page; None at its end."""
    texts: list[str] = []
    size, left = 0, page.limit
    while left and size < _PIECE_BYTES:
        asked = replace(page, limit=min(left, _STEP))
        rows = queries.exchanges.list_exchanges(connection, session_id=session_id, page=asked)
        texts += [json_text.dumps(exchange_json(row, names_upstream=names_upstreams)) for row in rows]
        size, left = sum(map(len, texts)), left - len(rows)
        if len(rows) < asked.limit:
            return texts, None
        page = Page(limit=left, after=rows[-1].exchange_id)
    return texts, page if left else None
