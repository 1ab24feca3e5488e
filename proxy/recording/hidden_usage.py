"""Removes the usage event from a stream if only the proxy requested it; all other usage is passed on."""

from proxy.wire.endpoint import Reply
from proxy.wire.sse import Event


class HiddenUsage:
    """The requested usage event is the last one of the stream.

    Usage sent before it is upstream's own and is passed on.
    """

    __slots__ = ("_has_come", "_reply", "_waiting")

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._has_come = False
        # Until a choice has finished, only the next event tells whether this usage event was the last one.
        self._waiting: Event | None = None

    def pass_on(self, event: Event) -> bytes:
        """The bytes to send now that this event (not the end) has arrived."""
        if not event.data:  # a comment does not show whether the held event was the last one
            return event.raw
        waited, self._waiting = self._waiting, None
        before = b"" if waited is None else waited.raw
        if self._has_come or not self._reply.is_usage_only(event):
            return before + event.raw
        if self._reply.is_whole:
            self._has_come = True
            return before + self._reply.without_usage(event)
        self._waiting = event
        return before

    def end(self) -> bytes:
        """Called at the end of the stream: the held event was ours; returns its other keys, if any, as an event."""
        waited, self._waiting = self._waiting, None
        return b"" if waited is None else self._reply.without_usage(waited)
