"""The write state of an exchange in progress: streamed bytes not queued for the database yet, and what is queued."""

import time
from collections.abc import Callable
from typing import Any

from proxy.storage.exchange import Exchange, SessionRef
from proxy.storage.foreseen import Foreseen
from proxy.storage.long_request import long_request
from proxy.storage.write_batch import WriteBatch
from proxy.wire import responses
from proxy.wire.endpoint import Reply


class OpenExchange:
    """An exchange between request and end. `feed` takes the reply's bytes; it never waits or raises."""

    __slots__ = (
        "_long",
        "_pending",
        "abort",
        "exchange",
        "is_begun",
        "is_placed",
        "length",
        "opened_at",
        "reply",
        "sequence",
        "size",
        "turn",
    )

    def __init__(self, exchange: Exchange, reply: Reply, *, size: int, turn: int = 0) -> None:
        """`reply` folds the stream; it may already have taken events that are not passed to `feed`."""
        self.exchange = exchange
        self._long = long_request(exchange)
        self.reply = reply
        self.abort: Callable[[], None] | None = None  # cancels the work on it
        self.turn = turn  # the group in which it is saved
        self.opened_at = time.monotonic()
        self.is_placed = False  # its session is known
        self.is_begun = False  # its request is stored or queued
        self._pending: list[bytes] = []  # streamed but not saved yet
        self.sequence = 0
        self.size = size  # bytes of the request and of the reply so far
        self.length = 0  # bytes of the stream so far; batched events count by their text

    def foreseen(
        self, work: Callable[[WriteBatch], Any], *, is_begun: bool = False, upstream: str | None = None
    ) -> Callable[[WriteBatch], Any]:
        """Wraps `work` so that its look-ups are read ahead, or a very long request is first stored in slices."""
        if self._long is not None:
            return self._long.before(work)
        return Foreseen(work, self.exchange, is_begun=is_begun, upstream=upstream)

    @property
    def takes_fragments(self) -> bool:
        """Whether fragments of the reply can be written: the exchange has a row, or will have one before they are
        written.

        If the row is rejected, so are its fragments: they go to the dead-letter file, too.
        """
        return self.is_begun and (self._long is None or self._long.is_done)

    @property
    def has_content(self) -> bool:
        """Whether there is anything to store yet.

        A request without messages may still be rejected; storing it earlier would leave an empty session.
        """
        return bool(self.exchange.messages or self._pending or self.reply.batched or self.sequence)

    def place(self, session: SessionRef) -> None:
        """Called when the exchange's session has been determined."""
        self.exchange.session = session
        self.is_placed = True

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of a streamed reply."""
        self.gather()
        self._pending.append(data)
        self.length += len(data)

    def unwritten(self) -> bytes:
        """The part of the stream not saved yet, as an equivalent stream."""
        self.gather()
        if len(self._pending) > 1:
            self._pending = [b"".join(self._pending)]
        return self._pending[0] if self._pending else b""

    def has_written(self, data: bytes) -> None:
        """Called when the unwritten part has been queued."""
        self._pending.clear()
        self.sequence += 1
        self.size += len(data)

    @property
    def keeps_events(self) -> bool:
        """Whether the events are kept for a while after the end."""
        may_be_asked_for = self.exchange.endpoint == responses.PATH and self.exchange.request.get("store") is not False
        return may_be_asked_for and bool(self.sequence or self._pending)

    def gather(self) -> None:
        """Merges the pending bytes and batched events, which saves memory."""
        if events := self.reply.take_batched():
            self._pending.append(events)
            self.length += len(events)
