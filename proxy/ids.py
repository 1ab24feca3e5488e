"""UUIDv7 identifiers (RFC 9562 §5.7) and the ISO 8601 timestamps every row carries."""

import os
import time
from datetime import UTC, datetime

_last = 0  # 48 bits of milliseconds and 12 bits of counter of the newest identifier


def uuid7() -> str:
    """A new identifier, greater as text than every earlier one of this process, also when the clock jumps back."""
    global _last
    _last = max(_last + 1, (time.time_ns() // 1_000_000) << 12)
    head = f"{_last:015x}"
    tail = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    text = f"{tail:016x}"
    return f"{head[:8]}-{head[8:12]}-7{head[12:]}-{text[:4]}-{text[4:]}"


def timestamp(seconds: float | None = None) -> str:
    """A point in time (Unix seconds, now by default) as `2026-11-22T09:58:54.123Z`."""
    moment = datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
