"""A branch as a list of message numbers, and where a page of it starts and ends."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from proxy.errors import InvalidRequestError
from proxy.ids import made_at
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.page import Page
from proxy.storage.queries.exchanges import ExchangeRow
from proxy.storage.queries.sessions import Session

Order = Literal["asc", "desc"]


class Positions(Protocol):
    """The message numbers of a branch by position, loaded as they are needed."""

    @property
    def total(self) -> int:
        """How many there are."""

    @property
    def exchange(self) -> ExchangeRow | None:
        """The exchange whose request defines the order of the numbers; None for the order of storage."""

    def read(self, start: int, stop: int) -> Sequence[int]:
        """The numbers at these positions, which exist."""

    def places_of(self, message_no: int) -> list[int]:
        """The positions of a number, in ascending order."""

    def count_through(self, message_no: int) -> int:
        """How many of the numbers are at most `message_no`."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A branch whose numbers are all known."""

    numbers: Sequence[int]
    exchange: ExchangeRow | None = None

    @property
    def total(self) -> int:
        return len(self.numbers)

    def read(self, start: int, stop: int) -> Sequence[int]:
        return self.numbers[start:stop]

    def places_of(self, message_no: int) -> list[int]:
        return [place for place, number in enumerate(self.numbers) if number == message_no]

    def count_through(self, message_no: int) -> int:
        return sum(number <= message_no for number in self.numbers)


def read_from(branch: Positions, start: int, *, step: int, order: Order = "asc") -> Iterator[int]:
    """The numbers from a position on, counted in the given order, read in pieces."""
    total = branch.total
    for first in range(start, total, step):
        end = min(first + step, total)
        if order == "desc":
            yield from reversed(branch.read(total - end, total - first))
        else:
            yield from branch.read(first, end)


def page_of(
    connection: Connection, session: Session, branch: Positions, *, page: Page, order: Order
) -> tuple[int, int]:
    """The start and end position of a page of a branch, in ascending order."""
    start, total = page.offset, branch.total
    if page.after is not None:
        start += _position_after(connection, session, branch, page.after, order=order)
    start, stop = min(start, total), min(start + page.limit, total)
    return (total - stop, total - start) if order == "desc" else (start, stop)


def _position_after(
    connection: Connection, session: Session, branch: Positions, message_id: str, *, order: Order
) -> int:
    message_no = queries.messages.find_message_no(connection, message_id, session_id=session.session_id)
    if message_no is None and made_at(message_id) is not None:
        # Ids are ordered by storage time, so the id of a deleted message still tells where it was.
        before = queries.messages.find_message_no_before(connection, message_id, session_no=session.session_no) or 0
        above = branch.count_through(before)
        return branch.total - above if order == "desc" else above
    places = [] if message_no is None else branch.places_of(message_no)
    if not places:
        raise InvalidRequestError("There is no such message on this branch.", param="after")
    return branch.total - places[-1] if order == "desc" else places[0] + 1
