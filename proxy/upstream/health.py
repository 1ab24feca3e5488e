"""Whether one upstream is in use: what its probes and requests say, folded to a state. Pure."""

from dataclasses import dataclass

_FAILURES_TO_LEAVE = 2
_SUCCESSES_TO_RETURN = 2
# An engine that has stalled still answers /health with 200 (seen on vLLM): silence counts, too.
_SILENCE_SECONDS = 20.0
_SILENT = "open requests receive nothing"


@dataclass(slots=True)
class Health:
    """The state of one upstream. It leaves after two failures in a row and returns after two good probes."""

    reason: str | None = None  # why it is not in use, or the last request failed
    is_known: bool = False  # a probe has been answered or has failed
    is_in: bool = True  # whether new requests go to it; stored, since each request asks it of every upstream
    _is_out: bool = False
    _is_silent: bool = False
    _failures: int = 0
    _successes: int = 0
    _received: int = 0
    _silent_since: float | None = None

    def failed(self, reason: str) -> None:
        """A probe or a request failed before its reply. The first probe decides alone."""
        self._successes = 0
        self._failures += 1
        self.reason = reason
        if self._failures >= _FAILURES_TO_LEAVE or not self.is_known:
            self._is_out = True
            self.is_in = False
        self.is_known = True

    def answered(self) -> None:
        """A probe was answered with 200."""
        self._failures = 0
        self._successes += 1
        if not self.is_known or self._successes >= _SUCCESSES_TO_RETURN or not self._is_out:
            self._is_out = False
            self.is_in = not self._is_silent
            self.reason = _SILENT if self._is_silent else None
        self.is_known = True

    def watch_silence(self, *, now: float, open_count: int, received: int) -> None:
        """Leave when open requests have received nothing for a while. `received` only has to change with the bytes.

        A long reply that is not a stream is silent, too: the choice falls back on silent upstreams where no other is
        left.
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
