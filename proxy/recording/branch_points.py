"""Chooses the stored message that a chat continues from; concurrent chats get different ones if there are several."""

from collections.abc import Sequence

from proxy.storage.queries.messages import StitchCandidate

_REMEMBERED = 1024  # far more than the chats that have chosen a message and are not stored yet


class RecentBranchPoints:
    """Remembers the messages chosen for this process's newest chats: the database does not show them as used yet."""

    def __init__(self) -> None:
        self._numbers: dict[int, None] = {}

    def choose(self, places: Sequence[StitchCandidate]) -> StitchCandidate:
        """The first unused candidate, else the first one."""
        open_ = (place for place in places if not place.goes_on and place.message_no not in self._numbers)
        chosen = next(open_, places[0])
        self._numbers[chosen.message_no] = None
        if len(self._numbers) > _REMEMBERED:
            del self._numbers[next(iter(self._numbers))]
        return chosen
