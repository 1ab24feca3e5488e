"""How long a search may go on: it binds SQLite's work and Python's alike, and can be moved up to now."""

import threading
import time

from proxy.errors import APIError


class TimeOutError(APIError):
    """The search took longer than it may."""

    def __init__(self) -> None:
        super().__init__("The search took too long; narrow it down.", status=503, code="search_timeout")


class Deadline:
    """Counts from the moment it is made."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds
        self._cancelled = threading.Event()

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._cancelled.is_set() or time.monotonic() > self._at

    def cancel(self) -> None:
        """End the search at its next step, from any thread."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise TimeOutError if the time is up."""
        if self.is_over:
            raise TimeOutError
