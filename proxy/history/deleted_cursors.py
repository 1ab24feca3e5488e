"""Remembers the list positions of recently deleted sessions, for clients that delete a page and then ask for the next.

Other processes do not know these positions, but a client usually keeps its connection. Otherwise, and after a restart,
the creation time in the id is used as the position.
"""

from proxy.ids import made_at

_KEPT_MAX = 10_000  # the oldest is forgotten first
_places: dict[tuple[str, str], tuple[str, str]] = {}


def remember(user_id: str, *ids: str | None, updated_at: str, session_id: str) -> None:
    """Stores a deleted session's position under each of its ids. Called only in the writer's thread."""
    for id_ in ids:
        if id_ is not None:
            _places[user_id, id_] = updated_at, session_id
    while len(_places) > _KEPT_MAX:
        del _places[next(iter(_places))]


def place_of(user_id: str, id_: str) -> tuple[str, str] | None:
    """A deleted session's update time and id; None if the id is not one of ours."""
    known = _places.get((user_id, id_))
    if known is not None:
        return known
    made = made_at(id_)
    return None if made is None else (made, id_)
