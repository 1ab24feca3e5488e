"""Lowers the priority of threads that search, read histories and render pages, so that streams come first."""

import os
import sys
import threading
from contextlib import suppress

# On two busy cores the event loop was late mostly because such threads had them (measured: 84 % of the time by which it
# was late, 2 % waiting for the GIL); this takes about a third of it away. A higher value would delay the loop where it
# waits for the GIL of a thread that other programs keep from running.
_LOWER_BY = 10


def lower_priority() -> None:
    """For the calling thread. Does nothing except on Linux, where threads have priorities of their own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _LOWER_BY)
