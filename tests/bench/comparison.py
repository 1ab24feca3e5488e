"""What callers got beside what the store has of it: the figures of `complete`, and the row that shows them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.callers import Got, Killed, Kind
from tests.bench.stores import Store

HEAD = (
    "",
    "recorded of what was sent",
    "bytes a whole chat on disk",
    "stream whose caller left: kept, and called",
    "kill -9 beside {streams} streams: acknowledged lost; running streams kept",
    "kill -9 in a burst: acknowledged lost",
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Of the replies that ended at their caller: how many are stored as whole with the same text, or twice."""

    sent: int
    ended: int
    stored: int
    doubled: int = 0

    def __str__(self) -> str:
        counts = {"failed": self.sent - self.ended, "stored twice": self.doubled}
        more = "".join(f" ({count:,} {what})" for what, count in counts.items() if count)
        return f"{self.stored:,} of {self.ended:,}{more}"


@dataclass(frozen=True, slots=True)
class Lost:
    """Of the replies that ended at their caller: how many are not stored, and the age of the oldest of them."""

    acknowledged: int
    lost: int
    oldest_s: float

    def __str__(self) -> str:
        age = f" (at most {self.oldest_s:.2f} s old)" if self.lost else ""
        return f"{self.lost:,} of {self.acknowledged:,}{age}"


@dataclass(frozen=True, slots=True)
class Cut:
    """Of the replies that did not end at their caller: how many are stored, and at most how much less or more text."""

    cut: int
    stored: int
    with_text: int
    short_s: float
    more_s: float
    states: dict[str, int]

    def __str__(self) -> str:
        kept = f"{self.stored} of {self.cut}"
        if not self.stored:
            return kept
        called = ", ".join(f"`{state}`" + f" ({n})" * (len(self.states) > 1) for state, n in self.states.items())
        return f"{kept}, {self._text()}, called {called}"

    def _text(self) -> str:
        if not self.with_text:
            return "without text"
        some = "" if self.with_text == self.stored else f"{self.with_text} with text, "
        short = f"at most {self.short_s:.1f} s short" if self.short_s else "all its text"
        return some + short + (f" and up to {self.more_s:.1f} s more" if self.more_s > _ON_ITS_WAY_S else "")


# A caller that leaves has not read what is on its way to it, which the relay may well store.
_ON_ITS_WAY_S = 0.3


def recorded(got: Sequence[Got], store: Store) -> Recorded:
    ended = [each for each in got if each.ended]
    doubled = sum(store[each.number].times > 1 for each in ended if each.number in store)
    return Recorded(len(got), len(ended), sum(_is_stored(each, store) for each in ended), doubled)


def _is_stored(got: Got, store: Store) -> bool:
    kept = store.get(got.number)
    return kept is not None and kept.whole and kept.text == got.text


def lost(killed: Killed, store: Store) -> Lost:
    ended = [each for each in killed.got if each.ended]
    gone = [each.at for each in ended if each.number not in store]
    return Lost(len(ended), len(gone), max(0.0, killed.at - min(gone, default=killed.at)))


def cut(got: Sequence[Got], store: Store, kind: Kind) -> Cut:
    there = [(each, store[each.number]) for each in got if not each.ended and each.number in store]
    more_s = [kind.seconds_of(kept.text) - kind.seconds_of(each.text) for each, kept in there if kept.text]
    return Cut(
        cut=sum(not each.ended for each in got),
        stored=len(there),
        with_text=sum(bool(kept.text) for _, kept in there),
        short_s=-min(0.0, *more_s, 0.0),
        more_s=max(0.0, *more_s, 0.0),
        states=dict(Counter(kept.state for _, kept in there)),
    )
