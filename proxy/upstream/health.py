"""Tracks whether one upstream is in rotation, from its probes and requests. Pure."""

from dataclasses import dataclass

# Two of each, so that an upstream that fails now and then does not change its state with every probe.
_FAILURES_TO_LEAVE = 2
_SUCCESSES_TO_RETURN = 2
# A stalled vLLM still answers /health with 200, so open requests without data are a sign of failure, too.
_SILENCE_SECONDS = 20.0
_SILENT = "open requests receive nothing"


@dataclass(slots=True)
class Health:
    """The state of one upstream.

    It is removed after two failures in a row, and restored after two successful probes.
    """

    reason: str | None = None  # why it is out of rotation, or why the last request failed
    is_known: bool = False  # the first probe has completed
    is_in: bool = True  # whether it receives new requests; stored, because every request reads it for every upstream
    _is_out: bool = False
    _is_silent: bool = False
    _failures: int = 0
    _successes: int = 0
    _received: int = 0
    _silent_since: float | None = None

    @property
    def can_serve(self) -> bool:
        """Whether a request would be answered if no other upstream is left: silence alone is no failure."""
        return not self._is_out and self.reason in (None, _SILENT)

    def failed(self, reason: str) -> None:
        """Records a failed probe, or a request that failed before its reply. The first probe decides alone."""
        self._successes = 0
        self._failures += 1
        self.reason = reason
        if self._failures >= _FAILURES_TO_LEAVE or not self.is_known:
            self._is_out = True
            self.is_in = False
        self.is_known = True

    def answered(self) -> None:
        """Records a probe answered with 200."""
        self._failures = 0
        self._successes += 1
        if not self.is_known or self._successes >= _SUCCESSES_TO_RETURN or not self._is_out:
            self._is_out = False
            self.is_in = not self._is_silent
            self.reason = _SILENT if self._is_silent else None
        self.is_known = True

    def watch_silence(self, *, now: float, open_count: int, received: int) -> None:
        """Removes the upstream if its open requests have received no data for a while.

        `received` may be any value that changes with each received byte. A long non-streamed reply is silent, too, so
        the choice falls back to silent upstreams if no other is available.
        """
        if open_count == 0 or received != self._received:
            self._received, self._silent_since, self._is_silent = received, None, False
            self.is_in = not self._is_out
            if self.reason == _SILENT:
                self.reason = None
        elif self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since >= _SILENCE_SECONDS:
            self._is_silent, self.is_in, self.reason = True, False, _SILENT
