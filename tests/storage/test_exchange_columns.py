"""What is not written out of an exchange and its messages comes back when they are read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.maintenance import export, imports
from proxy.maintenance.export import Scope
from proxy.storage import exchange_store, queries
from proxy.storage.exchange import Exchange, Outcome
from proxy.storage.page import Page
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.write_batch import write_batch
from proxy.wire.chat_reply import Completion
from tests.chats import Chats, exchange_of, said, user


@pytest.fixture
def chats(tmp_path: Path) -> Iterator[Chats]:
    chats = Chats(tmp_path / "chat.db")
    yield chats
    chats.connection.close()


def stored(chats: Chats, reply: dict[str, Any] | None, *, is_begun: bool = False, **outcome: Any) -> Exchange:
    exchange = chats.begin([user("hi")])
    ended = Outcome(
        status="completed" if reply else "failed",
        http_status=200,
        reply=Completion.from_body(json.dumps(reply).encode()) if reply else None,
        **outcome,
    )
    if is_begun:
        with write_batch(chats.connection) as rows:
            exchange_store.begin(rows, exchange, worker_id="w")
    with write_batch(chats.connection) as rows:
        if is_begun:
            exchange_store.finish_begun(rows, exchange, ended)
        else:
            exchange_store.finish(rows, exchange, ended)
    return exchange


def reply_of(model: Any, **others: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": said("yo"), "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "model": model, "choices": [choice], **others}


def raw(connection: SqliteConnection, query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query).fetchall()


@pytest.mark.parametrize("is_begun", (False, True))
@pytest.mark.parametrize(
    ("model", "column", "shown"), (("m", None, "m"), ("other", "other", "other"), (None, None, "m"), (5, None, "m"))
)
def test_the_model_is_written_where_it_is_not_the_one_asked_for(
    chats: Chats, model: Any, column: str | None, shown: str, is_begun: bool
) -> None:
    exchange = stored(chats, reply_of(model), is_begun=is_begun)
    assert raw(chats.connection, "SELECT model FROM exchanges") == [(column,)]
    row = queries.exchanges.get_exchange(chats.connection, exchange.exchange_id)
    assert row is not None
    assert row.model == shown
    assert raw(chats.connection, "SELECT model FROM messages WHERE role = 'assistant'") == [(shown,)]
    scanned = queries.completions.scan_exchanges_of_user(chats.connection, "u", after="", limit=9, newest_first=False)
    assert [candidate.model for candidate in scanned] == [shown]


@pytest.mark.parametrize("is_begun", (False, True))
@pytest.mark.parametrize("created", (1_790_000_000, 0, None, -1, 2**63, 1.5, True, "soon"))
def test_the_time_of_the_reply_is_a_column_where_it_is_one(chats: Chats, created: Any, is_begun: bool) -> None:
    exchange = stored(chats, reply_of("m", created=created), is_begun=is_begun)
    row = queries.exchanges.get_exchange(chats.connection, exchange.exchange_id)
    assert row is not None
    kept = (
        json.loads(row.completion or "{}").get("created") if row.completion_created is None else row.completion_created
    )
    assert kept == created
    assert type(kept) is type(created)


@pytest.mark.parametrize("is_begun", (False, True))
@pytest.mark.parametrize(
    ("completed_at", "column", "shown"),
    (
        ("2026-03-02T00:00:00.100Z", None, "2026-03-02T00:00:00.100Z"),
        ("2026-03-02T00:00:00.097Z", None, "2026-03-02T00:00:00.100Z"),
        # The body took three seconds to come; somebody set the clock.
        ("2026-03-02T00:00:03.100Z", "2026-03-02T00:00:03.100Z", "2026-03-02T00:00:03.100Z"),
        ("2025-12-31T00:00:00.000Z", "2025-12-31T00:00:00.000Z", "2025-12-31T00:00:00.000Z"),
    ),
)
def test_the_end_is_written_where_it_does_not_follow_from_the_duration(
    chats: Chats, is_begun: bool, completed_at: str, column: str | None, shown: str
) -> None:
    exchange = exchange_of([user("hi")], chats.begin([]).session)
    exchange.created_at = "2026-02-28T23:59:59.900Z"
    outcome = Outcome(status="failed", duration_ms=86_400_200, completed_at=completed_at)
    with write_batch(chats.connection) as rows:
        if is_begun:
            exchange_store.begin(rows, exchange, worker_id="w")
            exchange_store.finish_begun(rows, exchange, outcome)
        else:
            exchange_store.finish(rows, exchange, outcome)
    assert raw(chats.connection, "SELECT completed_at FROM exchanges") == [(column,)]
    [row] = queries.exchanges.list_exchanges(
        chats.connection, session_id=exchange.session.session_id, page=Page(limit=1)
    )
    assert row.completed_at == shown


def test_an_end_whose_duration_is_not_known_is_written(chats: Chats) -> None:
    exchange = stored(chats, None, completed_at="2026-01-01T00:00:00.000Z")
    row = queries.exchanges.get_exchange(chats.connection, exchange.exchange_id)
    assert row is not None
    assert row.completed_at == "2026-01-01T00:00:00.000Z"


def test_an_exchange_in_progress_has_no_end(chats: Chats) -> None:
    exchange = chats.begin([user("hi")])
    with write_batch(chats.connection) as rows:
        exchange_store.begin(rows, exchange, worker_id="w")
    row = queries.exchanges.get_exchange(chats.connection, exchange.exchange_id)
    assert row is not None
    assert row.completed_at is None


@pytest.mark.parametrize("finish_reason", ("stop", "length", None))
def test_a_message_says_all_of_itself(chats: Chats, finish_reason: str | None) -> None:
    reply = reply_of("m")
    reply["choices"][0]["finish_reason"] = finish_reason
    exchange = stored(chats, reply)
    session_id = exchange.session.session_id
    [asked, answered] = chats.shown(session_id)
    assert (asked["status"], answered["status"]) == ("completed", "completed")
    assert answered.get("finish_reason") == finish_reason
    lines = [json.loads(line) for line in export.export(chats.connection, Scope(), format_="jsonl")]
    [_, exported] = [line for line in lines if line["kind"] == "message"]
    assert exported["content_form"] == "text"
    assert exported["status"] == "completed"
    assert json.loads(exported["choice"]) == ({} if finish_reason is None else {"finish_reason": finish_reason})


def test_a_page_goes_on_where_the_last_one_ended(chats: Chats) -> None:
    session_id = chats.store([user("0")], said("yes"), session="s")
    for number in range(1, 6):
        chats.store([user(str(number))], said("yes"), session="s")
    chats.store([user("elsewhere")], said("yes"))

    def page(after: str | None) -> list[str]:
        rows = queries.exchanges.list_exchanges(
            chats.connection, session_id=session_id, page=Page(limit=3, after=after)
        )
        return [row.exchange_id for row in rows]

    first, second = page(None), page(page(None)[-1])
    assert len({*first, *second}) == 6
    assert page(second[-1]) == []


def test_an_export_of_before_the_columns_is_read(chats: Chats, tmp_path: Path) -> None:
    """It has the time of the reply among its other keys, and an end that was measured apart from the duration."""
    stored(chats, reply_of("m", created=5), duration_ms=10)
    lines = [json.loads(line) for line in export.export(chats.connection, Scope(), format_="jsonl")]
    old = lines[-1]
    assert old["kind"] == "exchange"
    del old["completion_created"]
    old["completion"] = '{"created":5}'
    old["completed_at"] = "2026-01-01T00:00:00.000Z"
    other = Chats(tmp_path / "other.db")
    imports.load(other.connection, [json.dumps(line).encode() for line in lines], progress=lambda _: None)
    *_, line = export.export(other.connection, Scope(), format_="jsonl")
    assert json.loads(line) == old | {"completion_created": None}
    other.connection.close()


def test_an_import_may_claim_any_duration(chats: Chats, tmp_path: Path) -> None:
    stored(chats, reply_of("m"), duration_ms=10)
    lines = [json.loads(line) for line in export.export(chats.connection, Scope(), format_="jsonl")]
    lines[-1] |= {"duration_ms": 2**62, "completed_at": None}
    other = Chats(tmp_path / "other.db")
    imports.load(other.connection, [json.dumps(line).encode() for line in lines], progress=lambda _: None)
    row = queries.exchanges.get_exchange(other.connection, lines[-1]["exchange_id"])
    assert row is not None
    assert row.completed_at is None
    other.connection.close()


def test_an_imported_exchange_of_another_user_than_its_sessions_is_left_out(chats: Chats, tmp_path: Path) -> None:
    stored(chats, reply_of("m"))
    lines = [json.loads(line) for line in export.export(chats.connection, Scope(), format_="jsonl")]
    lines[-1]["user_id"] = "eve"
    other = Chats(tmp_path / "other.db")
    imported = imports.load(other.connection, [json.dumps(line).encode() for line in lines], progress=lambda _: None)
    assert imported.refused_count == 1
    assert raw(other.connection, "SELECT COUNT(*) FROM exchanges") == [(0,)]
    other.connection.close()
