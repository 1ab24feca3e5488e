"""A search's time limit, which applies to SQLite and Python code alike, and can be ended early."""

import threading
import time

from proxy.errors import APIError


class TimeOutError(APIError):
    """The search exceeded its time limit."""

    def __init__(self) -> None:
        super().__init__("The search took too long; use a more specific query.", status=503, code="search_timeout")


class Deadline:
    """A time limit that starts when the object is created."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds
        self._cancelled = threading.Event()

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._cancelled.is_set() or time.monotonic() > self._at

    def cancel(self) -> None:
        """Ends the search at its next check; may be called from any thread."""
        self._cancelled.set()

    def check(self) -> None:
        """Raises TimeOutError if the time is up."""
        if self.is_over:
            raise TimeOutError
