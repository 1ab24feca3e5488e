"""Queries of `stellarchat stats`: row counts and token sums."""

from proxy.storage.connection import Connection, Row


def count_everything(connection: Connection) -> Row:
    """The numbers of users, sessions, messages, exchanges and blobs."""
    counts = connection.one("count_everything")
    assert counts is not None
    return counts


def list_tokens_by_day(connection: Connection, *, since: str) -> list[Row]:
    """Tokens by day and model, newest day first."""
    return connection.all("list_tokens_by_day", {"since": since})
