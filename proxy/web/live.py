"""Follows replies in progress: reads only the fragments stored since the last view and folds them."""

import threading
from collections import OrderedDict
from typing import Any

from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.wire.endpoints import endpoint_of
from proxy.wire.sse import Decoder

_KEPT = 64  # replies; one that was dropped is folded again from its first fragment


class _Growing:
    """One reply, and the number of fragments folded into it."""

    def __init__(self, endpoint: str) -> None:
        self.decoder = Decoder()
        self.reply = endpoint_of(endpoint).reply()
        self.taken = 0


class LiveReplies:
    """The replies in progress viewed recently. Called from several threads; a lock allows one at a time."""

    def __init__(self) -> None:
        self._growing: OrderedDict[str, _Growing] = OrderedDict()
        self._lock = threading.Lock()

    def message_of(
        self, connection: Connection, exchange_id: str, *, endpoint: str
    ) -> tuple[dict[str, Any], str | None]:
        """The first choice of a reply in progress so far, and its model."""
        with self._lock:
            growing = self._growing.pop(exchange_id, None) or _Growing(endpoint)
            self._growing[exchange_id] = growing
            if len(self._growing) > _KEPT:
                self._growing.popitem(last=False)
            for sequence, data in queries.web.iterate_fragments(connection, exchange_id, start=growing.taken):
                for event in growing.decoder.feed(data):
                    growing.reply.feed(event)
                growing.taken = sequence + 1
            choices = growing.reply.choices
            return (choices[0].message if choices else {}), growing.reply.model
