"""The choice of an upstream: balanced, stable when one comes or goes, the same everywhere."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.choice import Ranking, multiplier_of
from proxy.upstream.choice import choose as choose_in_order
from proxy.upstream.health import Health


@dataclass
class Engine:
    name: str
    open_count: int = 0
    health: Health = field(default_factory=Health)

    @property
    def multiplier(self) -> int:
        return multiplier_of(self.name)


def engines(count: int) -> list[Engine]:
    return [Engine(f"http://10.0.0.{number}:8000") for number in range(count)]


def choose(candidates: Sequence[Engine], a_key: bytes) -> Engine:
    return choose_in_order(Ranking(candidates).order(a_key))


def key(number: int) -> bytes:
    return blake2b(str(number).encode(), digest_size=16).digest()


@pytest.mark.parametrize("count", (2, 3, 8))
def test_conversations_are_spread_evenly(count: int) -> None:
    candidates = engines(count)
    shares = Counter(choose(candidates, key(number)).name for number in range(4000))
    assert len(shares) == count
    assert max(shares.values()) < 1.25 * 4000 / count


@pytest.mark.parametrize("count", (2, 5, 8))
def test_only_the_share_of_one_that_leaves_moves(count: int) -> None:
    before = engines(count)
    for left in before:
        after = [each for each in before if each is not left]
        for number in range(500):
            chosen = choose(before, key(number))
            assert chosen is left or choose(after, key(number)) is chosen


@given(st.permutations(range(6)), st.binary(min_size=16, max_size=16))
def test_the_order_of_the_list_does_not_matter(order: list[int], a_key: bytes) -> None:
    candidates = engines(6)
    assert choose([candidates[i] for i in order], a_key) is choose(candidates, a_key)


def test_one_that_is_busier_than_the_mean_is_passed_over_until_it_is_not() -> None:
    candidates = engines(4)
    first = choose(candidates, key(1))
    for each in candidates:
        each.open_count = 10
    first.open_count = 20
    second = choose(candidates, key(1))
    assert second is not first
    assert second is choose([each for each in candidates if each is not first], key(1))
    first.open_count = 10
    assert choose(candidates, key(1)) is first


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8), st.integers())
def test_there_is_always_a_choice_and_never_one_far_above_the_mean(loads: list[int], number: int) -> None:
    candidates = engines(len(loads))
    for each, load in zip(candidates, loads, strict=True):
        each.open_count = load
    chosen = choose(candidates, key(number))
    assert chosen.open_count <= 1.25 * (sum(loads) + 1) / len(loads)


def test_one_out_of_rotation_is_chosen_only_if_all_are() -> None:
    candidates = engines(3)
    ranking = Ranking(candidates)
    for expected in (*ranking.order(key(1)), ranking.order(key(1))[0]):
        assert choose_in_order(ranking.order(key(1))) is expected
        expected.health.is_in = False
