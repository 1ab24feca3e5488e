"""Dispatches a search to the configured database engine."""

from proxy.search import query, scan
from proxy.search.deadline import Deadline
from proxy.search.query import Found, Order, Query
from proxy.search.turns import SEARCH_SECONDS
from proxy.settings import Settings
from proxy.storage.engine import opened


def search(
    settings: Settings, asked: Query, *, limit: int, offset: int = 0, order: Order = "relevance", deadline: Deadline
) -> tuple[list[Found], bool]:
    """One page of hits, and whether there are more. Raises TimeOutError."""
    if not settings.is_postgresql:
        return query.search(settings.database_path, asked, limit=limit, offset=offset, order=order, deadline=deadline)
    with opened(settings, statement_seconds=SEARCH_SECONDS) as connection:
        return scan.search(connection, asked, limit=limit, offset=offset, order=order, deadline=deadline)
