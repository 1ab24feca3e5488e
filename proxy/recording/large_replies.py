"""Limits the work that a reply can cause: its size, its JSON values, and how long folding it delays other streams.

The limits are far above what any model writes. A reply beyond one of them is relayed unchanged; its exchange keeps what
came before, and says that the rest is missing.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from proxy.wire.content_coding import TooLargeError
from proxy.wire.value_count import running_counts

T = TypeVar("T")

LARGE_BYTES = 256 * 2**10  # a body or event above this is processed in a thread
# 6,000 tokens with 20 alternatives each. Parsing holds the GIL, and takes up to 100 bytes and 100 ns for each value.
_VALUES_MAX = 1_000_000
# A million tiny events at once held the event loop for 1 to 4 s; folding a slice takes milliseconds.
_SLICE_BYTES = 8 * 2**10
_DENSE_SLICE_BYTES = 2**10
_LINES_IN_A_SLICE = 256
# Not the default pool: a chat's end must not wait for exports.
_threads = ThreadPoolExecutor(2, thread_name_prefix="large-reply")


def too_large(limit: int, unit: str) -> dict[str, Any]:
    """The error of an exchange whose reply is not kept whole."""
    message = f"The reply is too large to keep: it has more than {limit} {unit}. The rest of it is not recorded."
    return {"message": message, "type": "reply_too_large"}


TOO_MANY_VALUES = too_large(_VALUES_MAX, "JSON values in one piece")


def not_decoded(exc: ValueError) -> dict[str, Any]:
    """The error of an exchange whose compressed reply cannot be read any further."""
    kind = "reply_too_large" if isinstance(exc, TooLargeError) else "reply_not_decoded"
    return {"message": f"The reply could not be decoded: {exc}", "type": kind}


def slice_at(data: bytes, start: int) -> bytes:
    """The next part of a chunk whose events take a few milliseconds, even if most of them are empty lines."""
    piece = data[start : start + _SLICE_BYTES]
    return piece[:_DENSE_SLICE_BYTES] if _is_dense(piece) else piece


def is_slice(data: bytes) -> bool:
    """Whether a chunk needs no cutting."""
    return len(data) <= _DENSE_SLICE_BYTES or (len(data) <= _SLICE_BYTES and not _is_dense(data))


def _is_dense(data: bytes) -> bool:
    return data.count(b"\n") + data.count(b"\r") > _LINES_IN_A_SLICE


async def in_thread(work: Callable[[], T]) -> T:
    """Runs `work` in a thread. Even if cancelled, returns only after its end: the caller then reads what it changed."""
    future = asyncio.get_running_loop().run_in_executor(_threads, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def has_too_many_values(text: bytes) -> bool:
    """Whether a JSON text has more values than are kept."""
    if text.count(b",") + text.count(b"{") + text.count(b"[") <= _VALUES_MAX:
        return False
    return any(count > _VALUES_MAX for count in running_counts(text))
