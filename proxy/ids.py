"""UUIDv7 identifiers (RFC 9562 §5.7), the ISO 8601 timestamps of all rows, and a clock that never goes back."""

import re
import time
from datetime import datetime, timedelta
from functools import lru_cache
from random import Random, SystemRandom

# Identifiers must be unique but not secret: access never depends on knowing one. Reading the system's random source for
# each would cost as much as everything else here.
_random = Random(SystemRandom().getrandbits(256)).getrandbits  # noqa: S311
# RFC 9562 §5.7: version 7 and variant 0b10 are at fixed places.
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_MILLISECOND = timedelta(milliseconds=1)
_LENGTH = len("2026-11-22T09:58:54.123Z")
_last = 0  # 48 bits of milliseconds and 12 bits of counter of the last identifier
_started_at = time.time() - time.monotonic()


def uuid7() -> str:
    """A new identifier. As text it is greater than all earlier ones of this process, even if the clock goes back."""
    global _last
    _last = max(_last + 1, (time.time_ns() // 1_000_000) << 12)
    digits = f"{_last:015x}{_random(62) | 0x8000_0000_0000_0000:x}"
    return f"{digits[:8]}-{digits[8:12]}-7{digits[12:15]}-{digits[15:19]}-{digits[19:]}"


def made_at(id_: str) -> str | None:
    """The creation time of an identifier as a timestamp; None if it is not a UUIDv7."""
    if _UUID7.fullmatch(id_) is None:
        return None
    try:
        return timestamp(int(id_[:8] + id_[9:13], 16) / 1000)
    except (ValueError, OverflowError):  # beyond the range of datetime
        return None


def timestamp(seconds: float | None = None) -> str:
    """A Unix time (default: now) as `2026-11-22T09:58:54.123Z`."""
    second, fraction = divmod(time.time() if seconds is None else seconds, 1)
    return f"{_to_the_second(second)}{int(fraction * 1000):03d}Z"


@lru_cache(maxsize=16)  # most timestamps are of the current second, by the wall clock or by `moment`'s
def _to_the_second(second: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))


def start_clock_at(started_at: float) -> None:
    """Sets the zero point of `moment`: the machine's boot as Unix time."""
    global _started_at
    _started_at = started_at


def keep_clock_between(earliest: float, latest: float) -> None:
    """Moves the zero point of `moment` by the smallest amount that puts it between the two values of a server's
    clock."""
    start_clock_at(min(max(_started_at, earliest), latest))


def moment(at: float | None = None) -> str:
    """A `time.monotonic()` (default: now) as a timestamp of a clock that never goes back. Only for ordering events: it
    may differ from the wall clock."""
    return timestamp(_started_at + (time.monotonic() if at is None else at))


def timestamp_after(earlier: str, duration_ms: int) -> str | None:
    """`earlier` plus a duration; None if it cannot be computed, because imported data may contain any value."""
    try:
        moment = datetime.fromisoformat(earlier) + timedelta(milliseconds=duration_ms)
    except (ValueError, OverflowError, TypeError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def milliseconds_between(earlier: str, later: str) -> float:
    """The difference of two timestamps."""
    if earlier[:17] == later[:17] and len(earlier) == len(later) == _LENGTH:  # of the same minute, as nearly always
        return int(later[17:19] + later[20:23]) - int(earlier[17:19] + earlier[20:23])
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)) / _MILLISECOND
