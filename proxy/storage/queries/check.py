"""Queries of `stellarchat check`: inconsistent counts, positions and references."""

from collections.abc import Iterator

from proxy.storage.connection import Connection, Row

# The query that reads each table's values for checking.
_VALUES = {
    "users": "users_values",
    "sessions": "sessions_values",
    "messages": "messages_values",
    "exchanges": "exchanges_values",
    "parameters": "parameters_values",
    "tools": "tools_values",
    "blobs": "blobs_values",
}


def list_inconsistent(connection: Connection, name: str) -> list[str]:
    """The ids found by one of the queries in `check.sql`."""
    return connection.values(name)


def list_exchanges_of_workers(connection: Connection) -> list[tuple[str, str]]:
    """Every exchange in progress, with the process that streams it."""
    return [(row["exchange_id"], row["worker_id"]) for row in connection.all("list_exchanges_of_workers")]


def iterate_values(connection: Connection, table: str) -> Iterator[Row]:
    """Iterates over a table: `id` and the columns to check."""
    return connection.each(_VALUES[table])
