"""Queries of the stored completions list: exchanges by upstream's id, by user, by session."""

from typing import NamedTuple

from proxy.storage.connection import Connection
from proxy.storage.damaged_values import built


class Candidate(NamedTuple):
    """An exchange with the fields that the list filters by; `metadata` is JSON text."""

    exchange_id: str
    status: str
    model: str | None
    metadata: str | None


def find_stored_exchange(connection: Connection, completion_id: str, *, user_id: str | None) -> str | None:
    """The newest ended exchange with upstream's id; of any user if `user_id` is None."""
    parameters = {"completion_id": completion_id, "user_id": user_id}
    name = "find_stored_exchange" if user_id is not None else "find_stored_exchange_of_anyone"
    found: str | None = connection.value(name, parameters)
    return found


def scan_exchanges_of_user(
    connection: Connection, user_id: str, *, after: str, limit: int, newest_first: bool
) -> list[Candidate]:
    """The user's next exchanges after `after`."""
    parameters = {"user_id": user_id, "after": after, "limit": limit}
    name = "scan_exchanges_of_user_newest_first" if newest_first else "scan_exchanges_of_user"
    return [built(Candidate, row) for row in connection.all(name, parameters)]


def scan_exchanges_of_session(
    connection: Connection, session_id: str, *, after: str, limit: int, newest_first: bool
) -> list[Candidate]:
    """The session's next exchanges after `after`."""
    parameters = {"session_id": session_id, "after": after, "limit": limit}
    name = "scan_exchanges_of_session_newest_first" if newest_first else "scan_exchanges_of_session"
    return [built(Candidate, row) for row in connection.all(name, parameters)]
