"""The list of sessions, filtered: each session that fits is on one page, once, whatever was tried on the way."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.storage import exchange_store
from proxy.storage.exchange import Outcome
from proxy.storage.named import QUERIES
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.write_batch import write_batch
from proxy.web import session_list
from proxy.web.session_list import Filters, find
from tests.stored import chat, choice, exchange, opened, outcome, user

FAILED = Outcome(status="failed", http_status=500, error={"message": "no"})
KINDS = ("completed", "failed", "incomplete", "in_progress")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteConnection]:
    """200 sessions of two users and three models, each of up to three requests that ended in every way."""
    dice = random.Random(3)
    with opened(tmp_path_factory.mktemp("list") / "stellarchat.db") as connection:
        for number in range(200):
            session_id, user_id = "", dice.choice(("ann", "bob"))
            for turn in range(dice.randint(1, 3)):
                session_id = _told(connection, f"{number}.{turn}", session_id, user_id, dice)
            moment = f"2026-{1 + number // 20:02}-{1 + number % 3:02}T00:00:00.000Z"
            connection.execute(
                "UPDATE sessions SET updated_at = ?, is_active = ? WHERE session_id = ?",
                (moment, number % 7 > 0, session_id),
            )
        yield connection


def _told(connection: SqliteConnection, text: str, session_id: str, user_id: str, dice: random.Random) -> str:
    asked = exchange([user(text)], user_id=user_id, session_id=session_id)
    asked.request["model"] = dice.choice(("often", "often", "seldom"))
    kind = dice.choice(KINDS)
    if kind == "in_progress":
        with write_batch(connection) as rows:
            exchange_store.begin(rows, asked, worker_id="w")
        return asked.session.session_id
    if kind == "failed":
        return chat(connection, asked, FAILED)
    finish = "stop" if kind == "completed" else None
    answer = outcome(choice("yes", finish_reason=finish), model=asked.request["model"])
    answer.status = "completed" if kind == "completed" else "incomplete"
    return chat(connection, asked, answer)


def expected(connection: SqliteConnection, user_id: str | None, filters: Filters) -> set[str]:
    """The sessions that fit, found one by one."""
    found = set()
    sessions = connection.execute("SELECT session_no, session_id, user_id, updated_at FROM sessions").fetchall()
    for session_no, session_id, owner, updated_at in sessions:
        exchanges = connection.execute(
            "SELECT COALESCE(e.model, p.model), status FROM exchanges AS e JOIN parameters AS p USING (parameters_no) "
            "WHERE e.session_no = ? ORDER BY e.exchange_no DESC",
            (session_no,),
        ).fetchall()
        states = [status for _, status in exchanges]
        status = "in_progress" if "in_progress" in states else states[0]
        fits = (user_id in (None, owner), filters.since <= updated_at < filters.until)
        models = {model for model, _ in exchanges}
        if all(fits) and filters.model in (None, *models) and filters.status in (None, status):
            found.add(session_id)
    return found


@pytest.mark.parametrize("user_id", (None, "ann"))
@pytest.mark.parametrize("model", (None, "often", "seldom", "never"))
@pytest.mark.parametrize("status", (None, *KINDS[1:]))
@pytest.mark.parametrize("days", ((None, None), ("2026-02-02", "2026-05-01")))
def test_each_session_that_fits_is_listed_once(
    told: SqliteConnection,
    monkeypatch: pytest.MonkeyPatch,
    user_id: str | None,
    model: str | None,
    status: str | None,
    days: tuple[str | None, str | None],
) -> None:
    # Small, so that pages end in the middle of a step, and of what is tried at most.
    for name, value in (("_PAGE", 7), ("_STEP", 11), ("_LOOKED_AT_MAX", 23)):
        monkeypatch.setattr(session_list, name, value)
    filters = Filters(model, status, *days)
    listed: list[str] = []
    place: str | None = ""
    while place is not None:
        found = find(told, user_id=user_id, filters=filters, after=place)
        assert len(found.sessions) <= 7
        assert not found.is_first_visit
        assert found.after != place
        listed += [session["session_id"] for session in found.sessions]
        place = found.after
    assert len(listed) == len(set(listed))
    assert set(listed) == expected(told, user_id, filters)


@pytest.mark.parametrize("after", ("x", "-1", "9" * 30, "~", "²", "\0", "2026~", "1e3"))
@pytest.mark.parametrize("status", (None, "failed"))
def test_odd_place_is_the_beginning_or_an_empty_page(told: SqliteConnection, after: str, status: str | None) -> None:
    found = find(told, user_id=None, filters=Filters(status=status), after=after)
    assert not found.is_first_visit


def test_a_filter_reads_an_index_and_never_all_exchanges(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        for name, index in (
            ("list_page_sessions_in_trouble", "idx_exchanges_in_trouble"),
            ("list_page_sessions_in_progress", "idx_exchanges_in_progress"),
            ("list_page_sessions", "idx_sessions_active"),
            ("list_page_sessions_of_user", "idx_sessions_user_id"),
        ):
            names = ("status", "is_active", "user_id", "model", "since", "until", "before", "before_id", "limit")
            given = dict.fromkeys(names, "x")
            plan = connection.execute(f"EXPLAIN QUERY PLAN {QUERIES[name]}", given).fetchall()
            assert index in str(plan[0]), plan
            assert not [step for step in plan if "SCAN" in str(step) and "INDEX" not in str(step)], plan
