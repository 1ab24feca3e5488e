"""Which branches this process's newest chats continued, so that two that race are not given the same one."""

from collections.abc import Sequence

from proxy.storage.queries.messages import StitchCandidate

_REMEMBERED = 1024


class RecentBranchPoints:
    """Where this process's newest chats went on from: two that race are not given the same place where there are more.

    What a chat continues has nothing below it in the tables before that chat is stored.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, None] = {}

    def choose(self, places: Sequence[StitchCandidate]) -> StitchCandidate:
        """The first place that nothing goes on from, else the first of all."""
        open_ = (place for place in places if not place.goes_on and place.message_no not in self._numbers)
        chosen = next(open_, places[0])
        self._numbers[chosen.message_no] = None
        if len(self._numbers) > _REMEMBERED:
            del self._numbers[next(iter(self._numbers))]
        return chosen
