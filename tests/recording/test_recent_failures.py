"""Which chats failed a moment ago."""

import time

import pytest

from proxy.recording.recent_failures import RecentFailures
from proxy.storage.exchange import Exchange, SessionRef
from tests.chats import exchange_of, said, system, user


def chat(*words: str, session_id: str = "s", user_id: str = "u") -> Exchange:
    return exchange_of([system("x"), *map(user, words)], SessionRef(session_id, "new"), user_id=user_id)


@pytest.fixture
def failures() -> RecentFailures:
    failures = RecentFailures()
    failures.add(chat("a"))
    failures.add(chat("a", "b", session_id="t"))
    return failures


def test_same_request_of_the_same_user_is_found(failures: RecentFailures) -> None:
    assert failures.find(chat("a"), is_retry=False) == "s"
    assert failures.find(exchange_of([user("a")], SessionRef("n", "new")), is_retry=True) == "s"
    assert failures.find(chat("a", "b"), is_retry=False) == "t"
    for other in (
        chat("b"),
        chat("a", user_id="v"),
        chat(),
        exchange_of([user("a"), said("b")], SessionRef("n", "new")),
    ):
        assert failures.find(other, is_retry=True) is None


def test_newest_failure_counts(failures: RecentFailures) -> None:
    failures.add(chat("a", session_id="newer"))
    assert failures.find(chat("a"), is_retry=False) == "newer"


def test_who_does_not_say_that_it_tries_again_is_believed_for_a_few_seconds(
    failures: RecentFailures, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    for later, found in ((5, ("s", "s")), (60, (None, "s")), (200, (None, None))):
        monkeypatch.setattr(time, "monotonic", lambda later=later: now + later)
        assert (failures.find(chat("a"), is_retry=False), failures.find(chat("a"), is_retry=True)) == found
    assert not failures._sessions
    assert not failures._lengths


def test_request_that_can_be_no_retry_is_not_hashed(failures: RecentFailures) -> None:
    other = chat("a", "b", "c")
    assert failures.find(other, is_retry=False) is None
    assert other._chain is None


def test_no_more_than_some_are_remembered() -> None:
    failures = RecentFailures()
    for number in range(2000):
        failures.add(chat(str(number)))
    assert len(failures._sessions) == 1024
    assert failures._lengths.total() == 1024
    assert failures.find(chat("1999"), is_retry=False) == "s"
    assert failures.find(chat("0"), is_retry=False) is None
