"""Checks that the wall clock is stable before data is deleted by age: not right after a start or a clock change."""

import time

# Normal drift or adjustment between two checks.
_JUMP_SECONDS = 60.0


class SteadyClock:
    """Compares the wall clock with the monotonic clock."""

    def __init__(self) -> None:
        self._difference: float | None = None

    def is_steady(self) -> bool:
        """Whether the clock has run normally since the last check; False at the first one."""
        before, self._difference = self._difference, time.time() - time.monotonic()
        return before is not None and abs(self._difference - before) < _JUMP_SECONDS
