"""A database with something of every kind in it, stored the way the recorder stores it."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from proxy.ids import timestamp, uuid7
from proxy.maintenance import check
from proxy.maintenance.check import OF_FILES, Problem
from proxy.recording.spill import spill_path
from proxy.storage import exchange_store, session_lookup
from proxy.storage.connection import Connection
from proxy.storage.exchange import Exchange, Outcome, SessionRef, Status
from proxy.storage.sqlite_connection import SqliteConnection, translated_errors
from proxy.storage.write_batch import write_batch
from proxy.wire import json_text
from proxy.wire.chat_reply import Completion
from tests.engines import connected

IMAGE = "data:image/png;base64," + "iVBORw0KGgo" * 400


@contextmanager
def opened(path: Path) -> Iterator[SqliteConnection]:
    """The database, made and migrated where needed."""
    with closing(connected(path)) as connection:
        yield connection


def problems_of(path: Path, *, state_path: Path | None = None) -> list[Problem]:
    """What `check` finds in the database of a path."""
    with closing(connected(path)) as connection:
        if isinstance(connection, SqliteConnection):
            steps = check.steps(path, state_path=state_path)
        else:
            every = check.steps(path, state_path=state_path, living=check.living_anywhere)
            steps = [step for step in every if step[0] not in OF_FILES]
        return [problem for _, find in steps for problem in find(connection)]


@translated_errors()
def execute(connection: Connection, statement: str, parameters: Sequence[Any] = ()) -> None:
    """Run SQL text as storage runs it."""
    assert isinstance(connection, SqliteConnection)
    connection.execute(statement, parameters)


@contextmanager
def worker(database: Path) -> Iterator[str]:
    """The id of a worker process that lives as long as the block: its lock is held, so nobody ends its chats."""
    worker_id = uuid7()
    path = spill_path(database, worker_id)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield worker_id
    path.unlink()


def exchange(messages: list[dict[str, Any]], *, user_id: str = "ann", session_id: str = "", **body: Any) -> Exchange:
    """A chat request of a session, new where none is named."""
    return Exchange(
        user_id=user_id,
        session=SessionRef(session_id, "header") if session_id else SessionRef(uuid7(), "new"),
        endpoint="/v1/chat/completions",
        request_id=uuid7(),
        request={"model": "m", "messages": messages, **body},
    )


def outcome(*choices: dict[str, Any], status: Status = "completed", error: Any = None, **keys: Any) -> Outcome:
    """A reply with these choices."""
    reply = {"id": f"chatcmpl-{uuid7()}", "model": "m", "choices": list(choices), **keys}
    whole = Completion.from_body(json_text.dumps(reply).encode())
    return Outcome(status=status, http_status=200, reply=whole, error=error, duration_ms=12, time_to_first_token_ms=3)


def choice(content: Any, *, index: int = 0, finish_reason: str | None = "stop", **message: Any) -> dict[str, Any]:
    """One choice of a reply."""
    return {
        "index": index,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": finish_reason,
    }


def user(content: Any) -> dict[str, Any]:
    """A message of the user's."""
    return {"role": "user", "content": content}


def assistant(content: Any, **message: Any) -> dict[str, Any]:
    """A message of the model's."""
    return {"role": "assistant", "content": content, **message}


def chat(connection: SqliteConnection, asked: Exchange, replied: Outcome) -> str:
    """Store a whole exchange; its session."""
    with write_batch(connection) as rows:
        exchange_store.finish(rows, asked, replied)
    return asked.session.session_id


def say(connection: SqliteConnection, text: str, *, user_id: str = "ann", reply: str = "yes") -> str:
    """Store a chat of one turn in a session of its own."""
    return chat(connection, exchange([user(text)], user_id=user_id), outcome(choice(reply)))


def fill(connection: SqliteConnection) -> None:
    """Every kind of message, branches, images, errors and unfinished replies."""
    system = {"role": "system", "content": "Be brief."}
    first = user("Hello 世界 😀")
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "total_tokens": 12,
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    session_id = chat(
        connection,
        exchange([system, first], temperature=0.5, metadata={"a": "b"}),
        outcome(choice("Hi", reasoning="think"), usage=usage, system_fingerprint="f", created=1),
    )
    again = exchange([{"role": "developer", "content": "now"}, first], session_id=session_id)
    chat(connection, again, outcome(choice("Hey", index=0), choice("Ho", index=1, finish_reason="length")))
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    turns = [system, first, assistant("Hi"), user([{"type": "text", "text": "look"}, _image()])]
    chat(connection, exchange(turns, session_id=session_id), outcome(choice(None, tool_calls=[call])))
    turns += [assistant(None, tool_calls=[call]), {"role": "tool", "tool_call_id": "c1", "content": "42"}]
    chat(connection, exchange(turns, session_id=session_id), outcome(choice("done", finish_reason=None)))
    cut = outcome(choice("half a", finish_reason=None), status="incomplete", error={"message": "left"})
    chat(connection, exchange([user("cut")], user_id="bo"), cut)
    failed = Outcome(status="failed", http_status=429, error={"message": "slow down", "code": 429})
    chat(connection, exchange([user("fails"), {"role": "function", "name": "f", "content": "1"}]), failed)
    chat(connection, exchange([user([_image()])], user_id="bo"), outcome(choice("a picture", finish_reason="stop")))
    chat(connection, exchange([user("odd \ud800"), user({"not": "usual"})]), outcome(choice({"x": [1]})))
    _claim_and_post(connection)


def _claim_and_post(connection: SqliteConnection) -> None:
    with write_batch(connection) as rows:
        session_lookup.get_or_create_session(
            rows.connection,
            user_id="bo",
            external_id="my-chat",
            session_id=uuid7(),
            title="By its own name",
            asked_at=timestamp(),
        )
        open_exchange = exchange([user("and now")], user_id="bo")
        exchange_store.begin(rows, open_exchange, worker_id="gone")
        data = b'data: {"choices":[{"index":0,"delta":{"content":"so f"}}]}\n\n'
        exchange_store.append_fragment(
            rows, open_exchange.origin, exchange_id=open_exchange.exchange_id, sequence=0, data=data
        )


def _image() -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}}
