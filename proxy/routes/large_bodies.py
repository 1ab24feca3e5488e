"""Limits the work that a large request body causes: counts its values before parsing, and processes it in a thread.

Parsing cannot be interrupted and holds the GIL. So the number of JSON values is limited (far above what any model's
context can hold), and all other processing of a large body runs in a thread.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from proxy.errors import APIError
from proxy.wire.value_count import running_counts

T = TypeVar("T")

# Ordinary chats are smaller: they are parsed on the event loop, which saves handing them to a thread and back.
LARGE_BYTES = 256 * 2**10
# Separate from the default pool: exports that filled the shared pool once left a chat unsaved. orjson holds
# the GIL while it parses, so more threads would not be faster.
_threads = ThreadPoolExecutor(2, thread_name_prefix="large-body")


async def refuse_too_many_values(body: bytes, *, limit: int) -> None:
    """Raises APIError 413 if the body has more values than any model's context could hold."""
    if len(body) > LARGE_BYTES and await _may_have_more(body, limit) and await _has_more(body, limit):
        raise APIError(
            f"The request body has more than {limit} JSON values.",
            status=413,
            type_="invalid_request_error",
            code="request_too_large",
        )


async def off_the_loop(work: Callable[[], T], *, size: int) -> T:
    """Runs `work`, in another thread if `size` is large; returns or raises its result."""
    if size <= LARGE_BYTES:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_threads, work)


async def _may_have_more(body: bytes, limit: int) -> bool:
    """A quick upper bound that also counts characters inside strings: a hundred times faster than the exact count."""
    count = 0
    for start in range(0, len(body), LARGE_BYTES):
        piece = body[start : start + LARGE_BYTES]
        count += piece.count(b",") + piece.count(b"{") + piece.count(b"[")
        await asyncio.sleep(0)
    return count > limit


async def _has_more(body: bytes, limit: int) -> bool:
    if b"\0" in body:  # UTF-16: quotes cannot be found bytewise
        return True
    for count in running_counts(body):
        if count > limit:
            return True
        await asyncio.sleep(0)
    return False
