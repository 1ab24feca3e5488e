"""Chooses one of several upstreams for a conversation: rendezvous hashing with bounded load. Pure.

Each upstream gets a score computed from the conversation's key; the highest score wins. There is no table, so all
workers choose alike, even after a restart; when an upstream is added or removed, only its share of the conversations
moves. https://en.wikipedia.org/wiki/Rendezvous_hashing, https://arxiv.org/abs/1608.01350 (bounded loads)
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar

_MASK = 2**64 - 1
# An upstream whose open requests exceed the mean by this factor is skipped in favour of the next best.
_LOAD_FACTOR = 1.25


class Candidate(Protocol):
    """An upstream for the choice: its hash multiplier and its number of open requests."""

    @property
    def multiplier(self) -> int: ...
    @property
    def open_count(self) -> int: ...


C = TypeVar("C", bound=Candidate)


def multiplier_of(name: str) -> int:
    """The odd 64-bit multiplier of the upstream with this name (multiply-shift hashing)."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") | 1


def choose(candidates: Sequence[C], key: bytes) -> C:
    """The candidate with the highest score that has capacity.

    `key` must be a hash, because its first 8 bytes are used.
    """
    if len(candidates) == 1:
        return candidates[0]
    number = int.from_bytes(key[:8], "big") | 1  # odd, like the multipliers, so that no two scores are equal
    best, highest, open_count = candidates[0], -1, 1
    for candidate in candidates:  # a single pass takes half the time of building lists of scores (measured)
        open_count += candidate.open_count
        score = number * candidate.multiplier & _MASK
        if score > highest:
            best, highest = candidate, score
    room = _LOAD_FACTOR * open_count / len(candidates)
    if best.open_count < room:
        return best
    order = sorted(candidates, key=lambda each: number * each.multiplier & _MASK, reverse=True)
    return next((each for each in order if each.open_count < room), best)
