"""Large bodies: what one caller sends is counted in pieces and read in threads of its own, so that no other waits.

Parsing cannot be interrupted and takes Python's lock for as long as it lasts. So a body may hold only so many values,
far more than any model's context does, and what is done with a large one beside parsing is done in a thread.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from proxy.errors import APIError
from proxy.wire.value_count import ValueCount

T = TypeVar("T")

LARGE_BYTES = 256 * 2**10
_PIECE_BYTES = 16 * 2**10  # of the densest text a few milliseconds
_threads = ThreadPoolExecutor(2, thread_name_prefix="large-body")


async def refuse_too_many_values(body: bytes, *, limit: int) -> None:
    """Raises APIError 413 where the body has more values than any model's context would hold."""
    if len(body) > LARGE_BYTES and await _may_have_more(body, limit) and await _has_more(body, limit):
        raise APIError(
            f"The request body has more than {limit} JSON values.",
            status=413,
            type_="invalid_request_error",
            code="request_too_large",
        )


async def off_the_loop(work: Callable[[], T], *, size: int) -> T:
    """What `work` returns or raises; where it is about a large body, another thread does it."""
    if size <= LARGE_BYTES:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_threads, work)


async def _may_have_more(body: bytes, limit: int) -> bool:
    """A first look, which also counts what stands in strings: it takes a hundredth of the time."""
    count = 0
    for start in range(0, len(body), LARGE_BYTES):
        piece = body[start : start + LARGE_BYTES]
        count += piece.count(b",") + piece.count(b"{") + piece.count(b"[")
        await asyncio.sleep(0)
    return count > limit


async def _has_more(body: bytes, limit: int) -> bool:
    if b"\0" in body:  # UTF-16, whose strings cannot be told apart by their bytes
        return True
    values = ValueCount()
    for start in range(0, len(body), _PIECE_BYTES):
        values.feed(body[start : start + _PIECE_BYTES])
        if values.count > limit:
            return True
        await asyncio.sleep(0)
    return False
