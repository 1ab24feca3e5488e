"""Keeps from the caller the one event of usage that the proxy asked for, and no other."""

from proxy.wire.endpoint import Reply
from proxy.wire.sse import Event


class HiddenUsage:
    """The usage that was asked for comes once, and last; what comes before, upstream sends to everyone."""

    __slots__ = ("_has_come", "_reply", "_waiting")

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._has_come = False
        # Until a choice says that it has ended, only the next event tells whether the stream has.
        self._waiting: Event | None = None

    def pass_on(self, event: Event) -> bytes:
        """The bytes that go out now that this event has come, which is not the end."""
        if not event.data:  # a comment says nothing about what waits
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
        """The stream has ended: what waited was ours, and what it carries beside the usage goes out."""
        waited, self._waiting = self._waiting, None
        return b"" if waited is None else self._reply.without_usage(waited)
