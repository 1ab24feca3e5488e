"""Finds a branch's messages by position, as stored or as last sent, without reading the whole branch.

Only the places where a request's order differs from the branch are known beforehand: its system messages.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.context import placed_messages
from proxy.storage.queries.exchanges import ExchangeRow
from proxy.storage.queries.sessions import Session

# A session or request with more system messages than this is traversed.
_SYSTEM_MESSAGES_MAX = 256


class BrokenDepthError(Exception):
    """A stored depth is wrong, which an import or another program may have caused: the branch must be traversed."""


@dataclass(frozen=True, slots=True)
class SentBranch:
    """A branch, without some of its messages and with others inserted."""

    connection: Connection
    leaf_no: int
    length: int  # of the branch
    left_out: Sequence[int] = ()  # depths, ascending
    inserted: Sequence[tuple[int, int]] = ()  # final positions and message numbers, ascending
    exchange: ExchangeRow | None = None

    @property
    def total(self) -> int:
        return self.length - len(self.left_out) + len(self.inserted)

    def read(self, start: int, stop: int) -> Sequence[int]:
        inserted = dict(self.inserted)
        depths = {place: self._depth_at(place) for place in range(start, stop) if place not in inserted}
        loaded = self._load(depths.values())
        return [loaded[depths[place]] if place in depths else inserted[place] for place in range(start, stop)]

    def places_of(self, message_no: int) -> list[int]:
        places = [place for place, number in self.inserted if number == message_no]
        node = queries.messages.get_node(self.connection, message_no)
        if node is not None and node.depth not in self.left_out:
            found = queries.jumps.find_ancestor(self.connection, self.leaf_no, depth=node.depth)
            if found is not None and found.message_no == message_no:
                places.append(self._place_of(node.depth))
        return sorted(places)

    def count_through(self, message_no: int) -> int:
        found = queries.jumps.find_ancestor_before(self.connection, self.leaf_no, before=message_no + 1)
        chained = 0 if found is None else found.depth + 1 - bisect_right(self.left_out, found.depth)
        return chained + sum(number <= message_no for _, number in self.inserted)

    def _depth_at(self, place: int) -> int:
        rank = place - bisect_left(self.inserted, (place,))
        return rank + _count_passed(self.left_out, rank)

    def _place_of(self, depth: int) -> int:
        rank = depth - bisect_left(self.left_out, depth)
        return rank + _count_passed([place for place, _ in self.inserted], rank)

    def _load(self, depths: Collection[int]) -> dict[int, int]:
        """The message numbers at the given depths, and those between them."""
        if not depths:
            return {}
        top, bottom = min(depths), max(depths)
        last = queries.jumps.find_ancestor(self.connection, self.leaf_no, depth=bottom)
        if last is None:
            raise BrokenDepthError
        path = queries.messages.list_path(self.connection, last.message_no, limit=bottom - top + 1)
        if len(path) <= bottom - top:
            raise BrokenDepthError
        return {bottom - up: step.message_no for up, step in enumerate(path)}


def _count_passed(taken: Sequence[int], rank: int) -> int:
    """How many of the taken places are before the free place with this rank."""
    return bisect_right(range(len(taken)), rank, key=lambda index: taken[index] - index)


def find_branch(connection: Connection, leaf_no: int) -> SentBranch | None:
    """A branch as it is stored. None: it must be traversed."""
    leaf = queries.messages.get_node(connection, leaf_no)
    return None if leaf is None or leaf.depth < 0 else SentBranch(connection, leaf_no, leaf.depth + 1)


def find_sent(connection: Connection, session: Session, leaf_no: int) -> SentBranch | None:
    """A branch in the order of its last request, with that request's system messages. None: it must be traversed."""
    branch = find_branch(connection, leaf_no)
    last = queries.jumps.find_exchange_above(connection, leaf_no, session_no=session.session_no)
    if branch is None or last is None:
        return branch
    depth, exchange_id = last
    exchange = queries.exchanges.get_exchange(connection, exchange_id)
    context = [] if exchange is None else placed_messages(exchange.context)
    if exchange is None or len(context) > _SYSTEM_MESSAGES_MAX:
        return None
    end = 1 + _end_of_request(branch, exchange, last_depth=depth)
    left_out = _list_left_out(connection, session, leaf_no, end=end)
    if left_out is None:
        return None
    inserted = _inserted(context, count=end - len(left_out))
    return SentBranch(connection, leaf_no, branch.length, left_out, inserted, exchange)


def _end_of_request(branch: SentBranch, exchange: ExchangeRow, *, last_depth: int) -> int:
    """The depth of a request's last message; without one on the branch, of the exchange's last message there."""
    places = [] if exchange.leaf_no is None else branch.places_of(exchange.leaf_no)
    return places[0] if places else last_depth


def _list_left_out(connection: Connection, session: Session, leaf_no: int, *, end: int) -> list[int] | None:
    """The depths of the system messages of a branch above `end`; the request's own are inserted at their positions."""
    found = queries.jumps.list_system_messages(
        connection, leaf_no, session_no=session.session_no, limit=_SYSTEM_MESSAGES_MAX + 1
    )
    if len(found) > _SYSTEM_MESSAGES_MAX:
        return None
    depths: list[int] = []
    bottom = leaf_no
    for each in sorted(found, key=lambda each: each.depth, reverse=True):
        if each.depth >= end:
            continue
        above = queries.jumps.find_ancestor(connection, bottom, depth=each.depth)
        if above is None:
            raise BrokenDepthError
        bottom = above.message_no
        if bottom == each.message_no:
            depths.append(each.depth)
    return depths[::-1]


def _inserted(context: Sequence[tuple[int | None, int]], *, count: int) -> list[tuple[int, int]]:
    """The positions of a request's system messages among its `count` other messages, as `as_requested` finds them."""
    inserted: list[tuple[int, int]] = []
    for placed, (to_come, message_no) in enumerate(context):
        place = placed if to_come is None else min(max(count + placed - to_come, placed), count + placed)
        inserted = [(other + (other >= place), number) for other, number in inserted]
        inserted.append((place, message_no))
    return sorted(inserted)
