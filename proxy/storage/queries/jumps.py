"""Queries of the jump pointers to distant ancestors on long branches."""

from collections.abc import Sequence
from typing import NamedTuple

from proxy.storage.connection import Connection
from proxy.storage.damaged_values import built, nearest


class Ancestor(NamedTuple):
    """A message of a branch, and its depth."""

    message_no: int
    depth: int


def insert_jumps(connection: Connection, rows: Sequence[dict[str, int]]) -> None:
    """Stores jump pointers from stored messages (`message_no`) to their ancestors at `depth`."""
    connection.store("insert_jump", rows)


def delete_jumps(connection: Connection, numbers: Sequence[int]) -> None:
    """Deletes the jump pointers of messages."""
    connection.store("delete_jumps", [{"message_no": number} for number in numbers])


def find_ancestor(connection: Connection, message_no: int, *, depth: int) -> Ancestor | None:
    """The ancestor (or the message itself) at the given depth; None if the tree has none."""
    row = connection.one("find_ancestor", {"message_no": message_no, "depth": depth})
    return built(Ancestor, row) if row is not None and row["depth"] == depth else None


def find_ancestor_before(connection: Connection, message_no: int, *, before: int) -> Ancestor | None:
    """The nearest ancestor (or the message itself) with a number below `before`."""
    row = connection.one("find_ancestor_before", {"message_no": message_no, "before": before})
    return built(Ancestor, row) if row is not None and row["message_no"] < before else None


def find_exchange_above(connection: Connection, message_no: int, *, session_no: int) -> tuple[int, str] | None:
    """The last exchange of a branch: the depth of its last message there, and its id."""
    row = connection.one("find_exchange_above", {"message_no": message_no, "session_no": session_no})
    if row is None or row["exchange_id"] is None:
        return None
    return nearest(row["depth"], (int,)), nearest(row["exchange_id"], (str,))


def list_system_messages(connection: Connection, message_no: int, *, session_no: int, limit: int) -> list[Ancestor]:
    """The newest system messages of a session up to a message, on any branch."""
    parameters = {"message_no": message_no, "session_no": session_no, "limit": limit}
    return [built(Ancestor, row) for row in connection.all("list_system_messages", parameters)]
