"""Whether the wall clock can be trusted with a deletion by age: not just after a start, and not just after a jump."""

import time

# What it may gain or lose between two looks, as when it is being adjusted.
_JUMP_SECONDS = 60.0


class SteadyClock:
    """Compares the wall clock with one that does not jump."""

    def __init__(self) -> None:
        self._difference: float | None = None

    def is_steady(self) -> bool:
        """Whether the clock runs as it did at the last look; false at the first."""
        before, self._difference = self._difference, time.time() - time.monotonic()
        return before is not None and abs(self._difference - before) < _JUMP_SECONDS
