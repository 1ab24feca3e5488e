"""Where the last deleted sessions stood in their list: who deletes what is listed asks for the page after one that is
gone.

Another process does not know of them, and a client mostly keeps to its connection; there, and after a restart, the
moment at which an id was made stands for the place.
"""

from proxy.ids import made_at

_KEPT_MAX = 10_000
_places: dict[tuple[str, str], tuple[str, str]] = {}


def remember(user_id: str, *ids: str | None, updated_at: str, session_id: str) -> None:
    """Keep the place of a session that is deleted, under each of its ids. By the writer's thread alone."""
    for id_ in ids:
        if id_ is not None:
            _places[user_id, id_] = updated_at, session_id
    while len(_places) > _KEPT_MAX:
        del _places[next(iter(_places))]


def place_of(user_id: str, id_: str) -> tuple[str, str] | None:
    """Time of the last change and id of a session that is gone; None for what is no id of ours."""
    known = _places.get((user_id, id_))
    if known is not None:
        return known
    made = made_at(id_)
    return None if made is None else (made, id_)
