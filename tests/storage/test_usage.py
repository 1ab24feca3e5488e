"""What was used is counted with the exchange that used it, and stays right whatever becomes of that."""

from pathlib import Path
from typing import Any

import pytest

from proxy.maintenance import export, imports
from proxy.storage import exchange_store, queries
from proxy.storage.exchange import Outcome
from proxy.storage.named import QUERIES, SQL
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.usage import FIRST_TOKEN_COLUMNS, percentile_ms
from proxy.storage.write_batch import write_batch
from tests.stored import chat, choice, exchange, fill, opened, outcome, user

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}


def usage_by(connection: SqliteConnection, by: str, *, user_id: str | None = None) -> dict[str, Any]:
    rows = queries.web.sum_usage(connection, by=by, since="", until="9999", user_id=user_id, limit=100)
    return {row.pop("name"): row for row in rows}


def all_rows(connection: SqliteConnection) -> list[Any]:
    return connection.execute("SELECT * FROM usage_days ORDER BY day, user_no, model, endpoint").fetchall()


def test_exchange_is_counted_with_its_tokens_and_its_end(tmp_path: Path) -> None:
    with opened(tmp_path / "a.db") as connection:
        chat(connection, exchange([user("a")]), outcome(choice("b"), usage=USAGE))
        chat(connection, exchange([user("c")], user_id="bo"), outcome(choice("d"), status="incomplete"))
        chat(connection, exchange([user("e")]), Outcome(status="failed", http_status=500))
        counted = usage_by(connection, "user")
        ann = counted["ann"]
        assert (ann["requests"], ann["failed"], ann["incomplete"]) == (2, 1, 0)
        assert (ann["prompt_tokens"], ann["cached_tokens"], ann["completion_tokens"]) == (5, 3, 7)
        assert counted["bo"]["incomplete"] == 1
        assert set(usage_by(connection, "model", user_id="bo")) == {"m"}


@pytest.mark.parametrize("by", ("day", "model", "endpoint", "user"))
def test_usage_of_one_user_is_found_by_index_and_adds_up(tmp_path: Path, by: str) -> None:
    with opened(tmp_path / "a.db") as connection:
        for name in ("ann", "bo", "bo"):
            chat(connection, exchange([user("a")], user_id=name), outcome(choice("b"), usage=USAGE))
        given = {"since": "", "until": "9999", "limit": 100, "offset": 0, "user_id": "bo"}
        plan = connection.execute(f"EXPLAIN QUERY PLAN {QUERIES[f'sum_usage_by_{by}_of_user']}", given).fetchall()
        assert any("idx_usage_days_user_no (user_no=?" in row[3] for row in plan)
        assert [row["requests"] for row in usage_by(connection, by, user_id="bo").values()] == [2]
        assert sum(row["requests"] for row in usage_by(connection, by).values()) == 3
        assert not usage_by(connection, by, user_id="nobody")


def test_users_are_read_page_by_page_most_tokens_first(tmp_path: Path) -> None:
    requests = {"ann": 2, "bo": 4, "cy": 2, "di": 5, "ed": 1}
    with opened(tmp_path / "a.db") as connection:
        for name, count in requests.items():
            for _ in range(count):
                chat(connection, exchange([user("a")], user_id=name), outcome(choice("b"), usage=USAGE))
        within: dict[str, Any] = {"since": "", "until": "9999", "user_id": None, "limit": 2}
        pages = [queries.web.sum_usage(connection, by="user", offset=offset, **within) for offset in (0, 2, 4, 6)]
        assert [[row["name"] for row in page] for page in pages] == [["di", "bo"], ["ann", "cy"], ["ed"], []]
        assert all(row["requests"] == requests[row["name"]] for page in pages for row in page)
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN {QUERIES['sum_usage_by_user']}", {"since": "", "until": "9", "limit": 2, "offset": 0}
        ).fetchall()
        assert any("idx_usage_days_user_no (user_no=?" in row[3] for row in plan)


@pytest.mark.parametrize("by", ("model", "endpoint"))
def test_few_names_are_summed_as_many_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    with opened(tmp_path / "a.db") as connection:
        fill(connection)
        for number, name in enumerate(("b", "a", "", "c", "a")):
            asked = exchange([user("q")], user_id=f"user-{number}", model=name)
            chat(connection, asked, outcome(choice("a"), model=name, usage=USAGE if name == "c" else None))
        connection.execute("UPDATE usage_days SET endpoint = '/v1/' || model")
        within: dict[str, Any] = {"by": by, "since": "", "until": "9999", "user_id": None}
        places = [(100, 0), (2, 0), (2, 2), (2, 100)]
        few = [queries.web.sum_usage(connection, **within, limit=limit, offset=offset) for limit, offset in places]
        monkeypatch.setattr(queries.web, "_FEW", 1)
        many = [queries.web.sum_usage(connection, **within, limit=limit, offset=offset) for limit, offset in places]
        assert few == many
        assert len(few[0]) > 4
        assert queries.web.sum_usage(connection, by=by, since="9", until="9", user_id=None, limit=9) == []


@pytest.mark.parametrize("by", ("model", "endpoint"))
@pytest.mark.parametrize("value", ("CAST(x'ff' AS TEXT)", "x'00ff'", "-5", "''"))
def test_damaged_name_does_not_end_the_sums_of_others(tmp_path: Path, by: str, value: str) -> None:
    with opened(tmp_path / "a.db") as connection:
        for name in ("ann", "bo"):
            chat(connection, exchange([user("a")], user_id=name), outcome(choice("b"), usage=USAGE))
        connection.execute(f"UPDATE usage_days SET {by} = {value} WHERE user_no = (SELECT MAX(user_no) FROM users)")
        assert [row["requests"] for row in usage_by(connection, by).values()] == [1, 1]


@pytest.mark.parametrize("user_id", (None, "ann", "nobody"))
def test_totals_are_the_sums_by_day(tmp_path: Path, user_id: str | None) -> None:
    with opened(tmp_path / "a.db") as connection:
        fill(connection)
        within: dict[str, Any] = {"since": "", "until": "9999", "user_id": user_id, "limit": 100}
        days = queries.web.sum_usage(connection, by="day", **within)
        totals = queries.web.sum_usage_totals(connection, **within)
        assert all(row.items() <= day.items() for row, day in zip(totals, days, strict=True))


def test_exchange_that_was_begun_is_counted_once_when_it_ends(tmp_path: Path) -> None:
    with opened(tmp_path / "a.db") as connection:
        asked = exchange([user("a")])
        with write_batch(connection) as rows:
            exchange_store.begin(rows, asked, worker_id="w")
        assert not all_rows(connection)
        for _ in range(2):
            with write_batch(connection) as rows:
                exchange_store.finish_begun(rows, asked, outcome(choice("b"), usage=USAGE))
        assert usage_by(connection, "endpoint")["/v1/chat/completions"]["requests"] == 1


def test_chats_of_one_batch_are_counted_together(tmp_path: Path) -> None:
    with opened(tmp_path / "a.db") as connection:
        with write_batch(connection) as rows:
            for number in range(5):
                asked = exchange([user(f"{number}")], user_id="ann" if number % 2 else "bo")
                exchange_store.finish(rows, asked, outcome(choice("x"), usage=USAGE))
        assert {name: row["requests"] for name, row in usage_by(connection, "user").items()} == {"bo": 3, "ann": 2}


def test_migration_counts_what_an_older_program_stored(tmp_path: Path) -> None:
    with opened(tmp_path / "a.db") as connection:
        fill(connection)
        counted = all_rows(connection)
        assert counted
        connection.execute("DELETE FROM usage_days")
        script = (SQL / "sqlite" / "migrations" / "0012_web.sql").read_text(encoding="utf-8")
        start = script.index("INSERT INTO usage_days")
        connection.execute(script[start : script.index(";", start)])
        assert all_rows(connection) == counted


def test_import_counts_what_it_brings(tmp_path: Path) -> None:
    with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
        fill(source)
        lines = "".join(export.export(source, export.Scope(), format_="jsonl")).encode().splitlines(keepends=True)
        imports.load(target, lines, progress=lambda _: None)
        first = usage_by(source, "day")
        assert usage_by(target, "day") == first
        imports.load(target, lines, progress=lambda _: None)
        assert usage_by(target, "day") == first


def test_usage_stays_when_a_session_goes_and_goes_with_its_user(tmp_path: Path) -> None:
    with opened(tmp_path / "a.db") as connection:
        session_id = chat(connection, exchange([user("a")]), outcome(choice("b"), usage=USAGE))
        with connection.transaction():
            queries.sessions.delete_session(connection, session_id)
        assert usage_by(connection, "user")["ann"]["requests"] == 1
        with connection.transaction():
            queries.users.delete_user(connection, "ann")
        assert not all_rows(connection)


@pytest.mark.parametrize("tokens", (2**62, 2**70, -1, "7", 1.5, True, None))
def test_odd_number_of_tokens_does_not_spoil_the_sums(tmp_path: Path, tokens: Any) -> None:
    with opened(tmp_path / "a.db") as connection:
        for text in ("a", "b", "c"):
            chat(connection, exchange([user(text)]), outcome(choice("b"), usage={"prompt_tokens": tokens}))
        assert 0 <= usage_by(connection, "user")["ann"]["prompt_tokens"] < 2**63


@pytest.mark.parametrize(
    ("share", "expected"), ((0.5, 50.0), (0.75, 75.0), (1.0, 100.0)), ids=("half", "three quarters", "all")
)
def test_percentile_lies_within_the_class_that_holds_it(share: float, expected: float) -> None:
    counts = dict.fromkeys(FIRST_TOKEN_COLUMNS, 0) | {"first_token_50": 10, "first_token_100": 10}
    assert percentile_ms(counts, share) == expected
    assert percentile_ms(dict.fromkeys(FIRST_TOKEN_COLUMNS, 0), share) is None
    assert percentile_ms(dict.fromkeys(FIRST_TOKEN_COLUMNS, 0) | {"first_token_more": 1}, share) == float("inf")
