"""Remembers this process's recently failed chats, so that a retry of the same request continues in the same session."""

import time
from collections import Counter

from proxy.storage.exchange import Exchange

_REMEMBERED = 1024  # chats; the oldest failure is forgotten first
# A marked retry may come as late as upstream's Retry-After allows. An unmarked repetition counts only for a few
# seconds.
_RETRY_SECONDS = 120.0
_SECONDS = 10.0


def within_seconds(*, is_retry: bool) -> float:
    """How long after a failure an identical request counts as a retry."""
    return _RETRY_SECONDS if is_retry else _SECONDS


class RecentFailures:
    """Sessions of chats without a complete reply, by user, number of messages, and last chain hash."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, int, bytes], tuple[str, float]] = {}
        # Checked before hashing: hash a request only if one of the same user and length has failed. Long histories are
        # costly.
        self._lengths: Counter[tuple[str, int]] = Counter()

    def add(self, exchange: Exchange) -> None:
        """Remembers a chat that failed or was cut."""
        if not exchange.chained:
            return
        key = _key(exchange)
        if key in self._sessions:
            self._drop(key)  # re-inserted below, so that the newest entries are last
        self._sessions[key] = exchange.session.session_id, time.monotonic()
        self._lengths[key[:2]] += 1
        if len(self._sessions) > _REMEMBERED:
            self._drop(next(iter(self._sessions)))

    def forget(self, exchange: Exchange) -> None:
        """Called when a chat was answered: from now on the same question is a new chat."""
        if self._lengths and (exchange.user_id, len(exchange.chained)) in self._lengths:
            key = _key(exchange)
            if key in self._sessions:
                self._drop(key)

    def find(self, exchange: Exchange, *, is_retry: bool) -> str | None:
        """The session of the failed chat that this request repeats."""
        self._forget_old()
        if not self._lengths or (exchange.user_id, len(exchange.chained)) not in self._lengths:
            return None
        session_id, failed_at = self._sessions.get(_key(exchange), (None, 0.0))
        return session_id if time.monotonic() - failed_at <= within_seconds(is_retry=is_retry) else None

    def _forget_old(self) -> None:
        oldest = time.monotonic() - _RETRY_SECONDS
        while self._sessions and self._sessions[key := next(iter(self._sessions))][1] < oldest:
            self._drop(key)

    def _drop(self, key: tuple[str, int, bytes]) -> None:
        del self._sessions[key]
        self._lengths[key[:2]] -= 1
        if not self._lengths[key[:2]]:
            del self._lengths[key[:2]]


def _key(exchange: Exchange) -> tuple[str, int, bytes]:
    return exchange.user_id, len(exchange.chained), exchange.chain[-1]
