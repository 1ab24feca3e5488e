"""Remembers the list positions of recently deleted sessions and completions.

Clients delete a page of a list and then ask for what follows its last entry. Other processes do not know these
positions, but a client usually keeps its connection.
"""

from typing import Generic, TypeVar

from proxy.ids import made_at

Position = TypeVar("Position")

_KEPT_MAX = 10_000  # the oldest is forgotten first


class Deleted(Generic[Position]):
    """Positions by user and id. Changed only in the writer's thread."""

    def __init__(self) -> None:
        self._positions: dict[tuple[str, str], Position] = {}

    def remember(self, user_id: str, id_: str, position: Position) -> None:
        """Stores a position, and forgets the oldest ones."""
        self._positions[user_id, id_] = position
        while len(self._positions) > _KEPT_MAX:
            del self._positions[next(iter(self._positions))]

    def find(self, user_id: str, id_: str) -> Position | None:
        """The position; None if it is not known."""
        return self._positions.get((user_id, id_))


sessions = Deleted[tuple[str, str]]()  # their update times and ids
completions = Deleted[str]()  # the ids of their exchanges


def place_of(user_id: str, session_id: str) -> tuple[str, str] | None:
    """A deleted session's update time and id; if unknown, the creation time in the id; None if the id has none."""
    known = sessions.find(user_id, session_id)
    if known is not None:
        return known
    made = made_at(session_id)
    return None if made is None else (made, session_id)
