"""Short ways up a long branch."""

from collections.abc import Sequence
from typing import NamedTuple

from proxy.storage.connection import Connection


class Ancestor(NamedTuple):
    """A message of a branch, and how many are above it."""

    message_no: int
    depth: int


def insert_jump(connection: Connection, *, message_no: int, above_no: int) -> None:
    """A way from a message to one above it."""
    connection.changes("insert_jump", {"message_no": message_no, "above_no": above_no})


def delete_jumps(connection: Connection, numbers: Sequence[int]) -> None:
    """Forget the ways up from messages."""
    connection.store("delete_jumps", [{"message_no": number} for number in numbers])


def find_ancestor(connection: Connection, message_no: int, *, depth: int) -> Ancestor | None:
    """The message at a depth above this one, or itself; None where the tree has none."""
    row = connection.one("find_ancestor", {"message_no": message_no, "depth": depth})
    return Ancestor(**row) if row is not None and row["depth"] == depth else None


def find_ancestor_before(connection: Connection, message_no: int, *, before: int) -> Ancestor | None:
    """The nearest message above this one, or itself, that was stored before a number."""
    row = connection.one("find_ancestor_before", {"message_no": message_no, "before": before})
    return Ancestor(**row) if row is not None and row["message_no"] < before else None
