"""Search on an engine without an index of ours: the messages that may hold a text, and their texts."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from proxy.storage.connection import Connection, Row


class Candidate(NamedTuple):
    """A message that may hold the text, and the size of its content in bytes."""

    message_no: int
    size: int


def list_candidates(connection: Connection, conditions: Row, *, below: int, limit: int) -> list[Candidate]:
    """Some of those whose numbers are below one, newest first. `conditions`: the query's filters, `run` and `ascii`."""
    rows = connection.all("list_search_candidates", {**conditions, "below": below, "limit": limit})
    return [Candidate(**row) for row in rows]


def texts_of(connection: Connection, numbers: Sequence[int]) -> dict[int, str]:
    """The contents of messages by their numbers; those that were deleted meanwhile are missing."""
    rows = connection.all("list_search_texts", {"numbers": json.dumps(list(numbers))})
    return {row["message_no"]: row["content"] for row in rows}


def get_hit(connection: Connection, message_no: int) -> Row | None:
    """What is shown of a message, but for its text."""
    return connection.one("get_search_hit", {"message_no": message_no})
