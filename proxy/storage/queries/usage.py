"""Queries of usage statistics by day, user, model and endpoint."""

from collections.abc import Sequence
from typing import Any

from proxy.storage.connection import Connection


def count_usage(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Adds ended exchanges to the statistics; each row has a distinct day, user, model or endpoint."""
    connection.store("count_usage", rows)
