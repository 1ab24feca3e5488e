"""Queries of a search without our own index: candidate messages and their texts."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from proxy.storage.connection import Connection, Row


class Candidate(NamedTuple):
    """A message that may contain the text, and the size of its content in bytes."""

    message_no: int
    size: int


def list_candidates(connection: Connection, conditions: Row, *, below: int, limit: int) -> list[Candidate]:
    """Candidates with numbers below `below`, newest first. `conditions`: the query's filters, `run` and `ascii`."""
    rows = connection.all("list_search_candidates", {**conditions, "below": below, "limit": limit})
    return [Candidate(**row) for row in rows]


def texts_of(connection: Connection, numbers: Sequence[int]) -> dict[int, str]:
    """The contents of messages by number; deleted messages are missing."""
    rows = connection.all("list_search_texts", {"numbers": json.dumps(list(numbers))})
    return {row["message_no"]: row["content"] for row in rows}


def get_hit(connection: Connection, message_no: int) -> Row | None:
    """A hit's columns without its text."""
    return connection.one("get_search_hit", {"message_no": message_no})
