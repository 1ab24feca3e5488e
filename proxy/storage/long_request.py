"""Stores a request with very many messages in slices, one transaction each, so that other chats can commit in between.

The messages appear in the session slice by slice, without an exchange: the exchange is stored last, with the final
messages, and refers to the last one. If the process dies in between, the stored messages remain, and the exchange's
spilled line or the caller's retry continues after them.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from proxy.ids import timestamp
from proxy.storage import exchange_store, message_tree, placement, queries, session_lookup
from proxy.storage.connection import Connection
from proxy.storage.exchange import Exchange
from proxy.storage.queries.sessions import Session
from proxy.storage.write_batch import UNFINISHED, SessionDelta, WriteBatch
from proxy.wire import hash_chain

T = TypeVar("T")

# Shorter requests are stored at once: that takes about ten milliseconds.
_LONG = 500
# How many messages are stored between two clock reads.
_STEP = 32


def long_request(exchange: Exchange) -> "LongRequest | None":
    """A LongRequest if the request has very many messages, else None."""
    return LongRequest(exchange) if len(exchange.messages) > _LONG else None


class LongRequest:
    """Progress of one request. Its transaction may have been rolled back, so the progress is verified before use."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._hashes: list[bytes] = []
        self._count = 0  # messages down to and including `_last_no`
        self._last_no: int | None = None
        self.is_done = False  # the wrapped work is done or was rejected

    def before(self, work: Callable[[WriteBatch], T]) -> Callable[[WriteBatch], T | object]:
        """Wraps `work` so that it runs once the messages are stored. Call the result until it is not UNFINISHED."""

        def run(rows: WriteBatch) -> T | object:
            is_over = True  # also if a statement is rejected
            try:
                if self.is_stored(rows):
                    return work(rows)
                rows.flush()  # not later, so that a rejected message ends it
                is_over = False
                return UNFINISHED
            finally:
                self.is_done = is_over

        return run

    def is_stored(self, rows: WriteBatch) -> bool:
        """Stores another slice; returns whether all messages are stored."""
        exchange = self._exchange
        if exchange_store.was_deleted(rows, exchange.origin) or exchange_store.has_row(rows, exchange.exchange_id):
            return True  # `work` handles this case: the spilled line may have been stored meanwhile
        if not self._is_hashed(rows):
            return False
        session = session_lookup.find_session(rows, exchange)
        if session is None:
            now = timestamp()
            rows.active_user_no(exchange.user_id, now=now)
            place, self._count = session_lookup.make_session(rows, exchange, now=now), 0
            exchange.is_session_made = True
        else:
            place = self._resumed(rows, session)
        return self._store_some(rows, place)

    def _is_hashed(self, rows: WriteBatch) -> bool:
        chained, hashes = self._exchange.chained, self._hashes
        above = hashes[-1] if hashes else hash_chain.root_hash(self._exchange.user_id)
        start = len(hashes)
        while len(hashes) < len(chained):
            if _is_over(rows, len(hashes) - start):
                return False
            above = hash_chain.chain_hash(above, chained[len(hashes)])
            hashes.append(above)
        self._exchange.take_chain(hashes)
        return True

    def _resumed(self, rows: WriteBatch, session: Session) -> message_tree.InsertPosition:
        connection = rows.about(session.session_id)
        if self._last_no is not None and self._is_still_last(connection, session, self._last_no):
            return message_tree.below(connection, session, self._last_no)
        place, self._count = placement.find_place(connection, session, self._exchange)
        return place

    def _is_still_last(self, connection: Connection, session: Session, message_no: int) -> bool:
        """Whether the message is the last one stored here and has no children.

        The request's spilled line, or a retry of the request, may have continued after it.
        """
        node = queries.messages.get_node(connection, message_no)
        return (
            node is not None
            and 0 < self._count <= len(self._hashes)
            and node.chain_hash == self._hashes[self._count - 1]
            and not queries.tree.has_children(connection, message_no, session_no=session.session_no)
        )

    def _store_some(self, rows: WriteBatch, place: message_tree.InsertPosition) -> bool:
        chained, delta = self._exchange.chained, SessionDelta(timestamp())
        is_all = True
        start = self._count
        while self._count < len(chained) - 1:  # the last message is stored together with the exchange
            if _is_over(rows, self._count - start):
                is_all = False
                break
            self._last_no = message_tree.store(rows, place, chained[self._count], delta)
            self._count += 1
        if delta.messages:
            rows.touch_session(place.session_id, delta)
        return is_all


def _is_over(rows: WriteBatch, done: int) -> bool:
    """Whether this slice ends after `done` messages: at least one step, however slow the machine is."""
    return done > 0 and done % _STEP == 0 and time.monotonic() > rows.long_ends_at
