"""Chooses one of several upstreams for a conversation: rendezvous hashing with bounded load. Pure.

Each upstream gets a score computed from the conversation's key; the highest score wins. Scores depend on names and keys
alone, so all workers choose alike, even after a restart; when an upstream is added or removed, only its share of the
conversations moves. https://en.wikipedia.org/wiki/Rendezvous_hashing, https://arxiv.org/abs/1608.01350 (bounded loads)
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Generic, Protocol, TypeVar

from proxy.upstream.health import Health

_MASK = 2**64 - 1  # scores are unsigned 64-bit products; Python's integers would grow
# Conversations with equal keys modulo this share an order, so that orders can be kept: scoring eight upstreams for each
# request took 3 us (measured).
_ORDERS = 4096
# An upstream whose open requests exceed the mean by this factor is skipped in favour of the next best.
_LOAD_FACTOR = 1.25


class Candidate(Protocol):
    """An upstream for the choice: its hash multiplier, its number of open requests, and its health."""

    @property
    def multiplier(self) -> int: ...
    @property
    def open_count(self) -> int: ...
    @property
    def health(self) -> Health: ...


C = TypeVar("C", bound=Candidate)


def multiplier_of(name: str) -> int:
    """The odd 64-bit multiplier of the upstream with this name (multiply-shift hashing)."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") | 1


class Ranking(Generic[C]):
    """Upstreams that serve the same model, ordered by score for each conversation."""

    def __init__(self, candidates: Sequence[C]) -> None:
        self._candidates = candidates
        self._orders: dict[int, Sequence[C]] = {}

    def __bool__(self) -> bool:
        return bool(self._candidates)

    def order(self, key: bytes) -> Sequence[C]:
        """The candidates, highest score first. `key` must be a hash, because only its first bytes are used."""
        number = int.from_bytes(key[:2], "big") % _ORDERS
        order = self._orders.get(number)
        if order is None:
            factor = 2 * number + 1  # odd, like the multipliers, so that no two scores are equal
            order = sorted(self._candidates, key=lambda each: factor * each.multiplier & _MASK, reverse=True)
            self._orders[number] = order
        return order


def choose(order: Sequence[C]) -> C:
    """The first candidate that is in rotation and has capacity. If none is in rotation, all of them are considered."""
    best = order[0]
    if best.health.is_in:
        if not best.open_count:
            return best
        counts = [each.open_count for each in order if each.health.is_in]
        if best.open_count < _limit(counts):
            return best
    usable = [each for each in order if each.health.is_in] or order
    limit = _limit([each.open_count for each in usable])
    return next(each for each in usable if each.open_count < limit)


def _limit(counts: Sequence[int]) -> float:
    return _LOAD_FACTOR * (1 + sum(counts)) / len(counts)
