"""What was used by day, user, model and endpoint."""

from collections.abc import Sequence
from typing import Any

from proxy.storage.connection import Connection


def count_usage(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Count exchanges that have ended; each row is of another day, user, model or endpoint."""
    connection.store("count_usage", rows)
