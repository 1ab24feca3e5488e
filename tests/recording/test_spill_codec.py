from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import ids
from proxy.recording import spill_codec
from proxy.storage import exchange_store
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.write_batch import write_batch
from proxy.wire.chat_reply import Completion
from proxy.wire.sse import Event
from tests.engines import connected, on_both_engines
from tests.fake_upstream import chat_chunk, event

pytestmark = on_both_engines


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[SqliteConnection]:
    opened = connected(tmp_path / "x.db")
    yield opened
    opened.close()


def exchange_of(**changes: Any) -> Exchange:
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.1, "seed": 2**70}
    session = SessionRef(ids.uuid7(), "header", "mine")
    return Exchange(user_id="u", session=session, endpoint="/e", request_id="r", request=request | changes)


def streamed(*deltas: dict[str, Any], finish: str | None = None) -> Completion:
    reply = Completion()
    for delta in deltas:
        reply.feed(Event(b"", event(chat_chunk(1, delta))[6:-2]))
    if finish:
        reply.feed(Event(b"", event(chat_chunk(1, {}, finish_reason=finish))[6:-2]))
    return reply


OUTCOMES = (
    Outcome(status="completed", http_status=200, reply=streamed({"role": "assistant", "content": "yo"}, finish="stop")),
    Outcome(status="incomplete", http_status=200, reply=streamed({"content": "half a "}), error={"message": "left"}),
    Outcome(status="incomplete", http_status=200, reply=Completion(), error={"message": "left"}),
    Outcome(status="failed", http_status=None, reply=None, error={"message": "refused"}, duration_ms=3),
    Outcome(
        status="completed",
        reply=Completion.from_body(
            b'{"id":"c","x_unknown":[1e400,18446744073709551616],"usage":{"completion_tokens":3},"choices":'
            b'[{"index":0,"finish_reason":"stop",'
            b'"message":{"role":"assistant","content":"\\ud800 lone","tool_calls":[]}},'
            b'{"index":1,"finish_reason":"length","logprobs":{"content":[]},'
            b'"message":{"content":null,"reasoning":"r"}}]}'
        ),
    ),
)

_EXCHANGES = """SELECT status, http_status, finish_reason, completion_tokens, duration_ms, data, completion_id,
                completion, error, completed_at FROM exchanges JOIN parameters USING (parameters_no)"""
_MESSAGES = "SELECT role, content, content_form, extra, choice, model, tokens, status, depth FROM messages"


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_replayed_finish_stores_what_the_finish_would_have(
    connection: SqliteConnection, tmp_path: Path, outcome: Outcome
) -> None:
    exchange = exchange_of()
    with write_batch(connection) as rows:
        exchange_store.finish(rows, exchange, outcome)
    other = connected(tmp_path / "other.db")
    with write_batch(other) as rows:
        spill_codec.replay(spill_codec.finish_line(exchange, outcome))(rows)
    for query in (_EXCHANGES, _MESSAGES):
        assert other.execute(query).fetchall() == connection.execute(query).fetchall()
    other.close()


def test_lines_replayed_twice_store_once(connection: SqliteConnection) -> None:
    exchange = exchange_of()
    lines = [
        spill_codec.begin_line(exchange, worker_id="w"),
        spill_codec.fragment_line(
            exchange.origin, exchange_id=exchange.exchange_id, sequence=0, data=b"\x00\xff\ndata"
        ),
        spill_codec.finish_line(exchange, OUTCOMES[0]),
        spill_codec.delete_fragments_line([exchange.exchange_id]),
    ]
    assert not any(b"\n" in line or b"\0" in line for line in lines)
    for _ in range(2):
        for line in lines:
            with write_batch(connection) as rows:
                spill_codec.replay(line)(rows)
    assert connection.execute("SELECT role, content FROM messages").fetchall() == [("user", "hi"), ("assistant", "yo")]
    assert connection.execute("SELECT status FROM exchanges").fetchall() == [("completed",)]
    assert connection.execute("SELECT * FROM exchange_fragments").fetchall() == []


def test_a_finish_that_was_not_begun_replayed_twice_stores_once(connection: SqliteConnection) -> None:
    line = spill_codec.finish_line(exchange_of(), OUTCOMES[0])
    for _ in range(2):
        with write_batch(connection) as rows:
            spill_codec.replay(line)(rows)
    assert connection.execute("SELECT role, content FROM messages").fetchall() == [("user", "hi"), ("assistant", "yo")]
    assert connection.execute("SELECT message_count FROM sessions").fetchall() == [(2,)]


def test_a_reply_that_is_stored_after_the_request_that_resends_it_is_stored_once(
    connection: SqliteConnection,
) -> None:
    """Two workers spill, and the one with the later turn brings its lines back first."""
    first = exchange_of()
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    second = exchange_of(messages=[*history, {"role": "user", "content": "more"}])
    for exchange in (second, first):
        with write_batch(connection) as rows:
            spill_codec.replay(spill_codec.finish_line(exchange, OUTCOMES[0]))(rows)
    contents = "SELECT content FROM messages ORDER BY message_no"
    assert connection.execute(contents).fetchall() == [("hi",), ("yo",), ("more",), ("yo",)]
    owner = """SELECT exchange_id, choice IS NOT NULL FROM messages JOIN exchanges USING (exchange_no)
               WHERE content = 'yo' AND depth = 1"""
    assert connection.execute(owner).fetchall() == [(first.exchange_id, 1)]
    assert connection.execute("SELECT message_count, leaf_no FROM sessions").fetchall() == [(4, 4)]


def test_a_fragment_comes_back_byte_for_byte(connection: SqliteConnection) -> None:
    exchange = exchange_of()
    with write_batch(connection) as rows:
        spill_codec.replay(spill_codec.begin_line(exchange, worker_id="w"))(rows)
        line = spill_codec.fragment_line(
            exchange.origin, exchange_id=exchange.exchange_id, sequence=0, data=bytes(range(256))
        )
        spill_codec.replay(line)(rows)
    assert connection.execute("SELECT data FROM exchange_fragments").fetchall() == [(bytes(range(256)),)]
