"""`python -m tests.bench.stitching`: what storing a long chat costs, and finding one among a million."""

import argparse
import json
import math
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from proxy import ids
from proxy.storage import exchange_store, named, queries, session_lookup, sqlite
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.write_batch import write_batch
from proxy.wire import hash_chain
from proxy.wire.chat_reply import Completion

_TURNS = 200
_LENGTHS = (200, 500, 1000, 2000, 4000)
_MEANS = ((300, 900), (1180, 1760))  # characters of a question and of its answer
_SIGMA = 1.0
_WORDS = ("river", "bridge", "engine", "paper", "window", "garden", "signal", "copper", "winter", "market", "planet")
_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_ALIKE = "alike"  # the user whose chats all begin alike
_SAMPLES = 500
_BATCH = 10_000

Message = dict[str, str]
Turn = tuple[str, str]  # a question and its answer


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        print(f"a chat of {_TURNS} turns, resent in full each turn; plain: the same in the first design's tables alone")
        head = ("characters", "bytes/said", "less empty", "bytes/turn", "turn 2 ms", "turn 200", "plain", "less empty")
        print(*(f"{column:>10}" for column in head))
        for number, (characters, said) in enumerate(_chats().items()):
            ours, plain = folder / f"{number}.db", folder / f"{number}-plain.db"
            print(f"{characters:>10}", _long_chat(ours, said), _plain_chat(plain, said), flush=True)
        if options.chats:
            _find(folder / "many.db", chats=options.chats, alike=options.alike)


# --- one long chat


def _chats() -> dict[str, list[Turn]]:
    """What is said, by how long the messages are: all alike, or mixed about a mean for each side, as they are in life.

    Where all are alike, the figures depend on how many of just that length fill a page.
    """
    alike = {str(length): list(zip(_alike_long(length), _alike_long(length), strict=True)) for length in _LENGTHS}
    mixed = {f"~{asked}/{told}": list(zip(_mixed(asked), _mixed(told), strict=True)) for asked, told in _MEANS}
    return alike | mixed


def _alike_long(length: int) -> list[str]:
    return [_text(length) for _ in range(_TURNS)]


def _mixed(mean: int) -> list[str]:
    """Texts of lognormal lengths, which are the same in every run."""
    lengths = random.Random(mean)
    location = math.log(mean) - _SIGMA**2 / 2  # https://en.wikipedia.org/wiki/Log-normal_distribution
    return [_text(max(1, round(lengths.lognormvariate(location, _SIGMA)))) for _ in range(_TURNS)]


def _long_chat(path: Path, said: Sequence[Turn]) -> str:
    connection = sqlite.connect(path)
    sqlite.prepare(connection)
    connection.execute("PRAGMA synchronous = OFF")  # the disk's time is not ours
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()  # the schema is in the file now
    empty = path.stat().st_size
    times = list(_stored(connection, said))
    assert connection.execute("SELECT COUNT(*) FROM messages").fetchone() == (2 * len(said),)
    connection.close()  # the log and the shared memory beside it are there only while it is open
    ratio, less_empty, over = _on_disk(path, said, empty=empty)
    early, late = statistics.median(times[1:6]), statistics.median(times[-5:])
    return f"{ratio:>10.2f} {less_empty:>10.2f} {over:>10,.0f} {early:>10.2f} {late:>10.2f}"


def _stored(connection: SqliteConnection, said: Iterable[Turn]) -> Iterator[float]:
    """Store a chat that is resent in full each turn; the milliseconds of each turn."""
    messages: list[Message] = []
    for question, answer in said:
        messages.append({"role": "user", "content": question})
        exchange = _exchange("default_user", messages)
        places = session_lookup.list_stitched(connection, exchange)
        if places:
            exchange.session = SessionRef(places[0].session_id, "stitched")
        outcome = _outcome(answer, completion_id=f"chatcmpl-{exchange.request_id}")
        began = time.perf_counter()
        with write_batch(connection) as rows:
            exchange_store.finish(rows, exchange, outcome)
        yield (time.perf_counter() - began) * 1e3
        messages.append({"role": "assistant", "content": answer})


def _plain_chat(path: Path, said: Sequence[Turn]) -> str:
    """The same chat without exchanges, tree and hashes: the least that a file with these columns and indexes takes."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA page_size = 1024")  # as ours
    connection.execute("PRAGMA synchronous = OFF")
    connection.executescript(_PLAIN)
    empty = path.stat().st_size
    session_id, now = ids.uuid7(), ids.timestamp()
    connection.execute(_PLAIN_SESSION, (session_id, said[0][0][:80], now, now))
    for question, answer in said:
        connection.execute(_PLAIN_MESSAGE, (ids.uuid7(), session_id, "user", question, None, 0, ids.timestamp()))
        connection.execute(_PLAIN_MESSAGE, (ids.uuid7(), session_id, "assistant", answer, _MODEL, 20, ids.timestamp()))
    connection.close()
    ratio, less_empty, _ = _on_disk(path, said, empty=empty)
    return f"{ratio:>10.2f} {less_empty:>10.2f}"


def _on_disk(path: Path, said: Sequence[Turn], *, empty: int) -> tuple[float, float, float]:
    """Bytes for each that was said, the same without the `empty` file's, and what a turn takes over what it says."""
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    said_bytes = sum(len(text) for turn in said for text in turn)
    return size / said_bytes, (size - empty) / said_bytes, (size - empty - said_bytes) / len(said)


def _text(length: int) -> str:
    words: list[str] = []
    size = 0
    while size <= length:  # one more than the spaces between them
        words.append(random.choice(_WORDS))
        size += len(words[-1]) + 1
    return " ".join(words)[:length]


def _exchange(user_id: str, messages: Sequence[Message]) -> Exchange:
    request_id = ids.uuid7()
    return Exchange(
        exchange_id=request_id,
        user_id=user_id,
        session=SessionRef(ids.uuid7(), "new"),
        endpoint="/v1/chat/completions",
        request_id=request_id,
        request={"model": _MODEL, "messages": list(messages), "temperature": 0.7, "stream": True},
    )


def _outcome(answer: str, *, completion_id: str) -> Outcome:
    """A reply as vLLM writes it, with its many null keys."""
    nulls = ("refusal", "annotations", "audio", "function_call", "reasoning")
    message: dict[str, object] = {"role": "assistant", "content": answer, "tool_calls": [], **dict.fromkeys(nulls)}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    envelope = {
        "id": completion_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": _MODEL,
        "choices": [choice],
        "usage": {"prompt_tokens": 30, "total_tokens": 50, "completion_tokens": 20, "prompt_tokens_details": None},
        **dict.fromkeys(("service_tier", "system_fingerprint", "prompt_logprobs", "kv_transfer_params")),
    }
    reply = Completion.from_body(json.dumps(envelope).encode())
    completed_at = ids.timestamp(time.time() + 0.5)  # as long after the beginning as the duration says
    return Outcome(
        status="completed",
        http_status=200,
        reply=reply,
        completed_at=completed_at,
        time_to_first_token_ms=10,
        duration_ms=500,
    )


_PLAIN_SESSION = """
INSERT INTO sessions (session_id, user_id, title, created_at, updated_at) VALUES (?, 'default_user', ?, ?, ?)
"""
_PLAIN_MESSAGE = """
INSERT INTO messages (message_id, session_id, role, content, model, tokens, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
# The tables as they were first designed, with every column and index that they were given.
_PLAIN = """
CREATE TABLE users (
    user_id TEXT PRIMARY KEY,
    username TEXT,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    last_active DATETIME DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX idx_users_last_active ON users(last_active);
CREATE TABLE sessions (
    session_id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    title TEXT DEFAULT 'New Conversation',
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    updated_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    is_active BOOLEAN DEFAULT TRUE,
    FOREIGN KEY (user_id) REFERENCES users(user_id)
);
CREATE INDEX idx_sessions_user_id ON sessions(user_id);
CREATE INDEX idx_sessions_created_at ON sessions(created_at DESC);
CREATE INDEX idx_sessions_active ON sessions(is_active, updated_at DESC);
CREATE TABLE messages (
    message_id TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('user', 'assistant', 'system')),
    content TEXT NOT NULL,
    model TEXT,
    tokens INTEGER DEFAULT 0,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    metadata TEXT,
    FOREIGN KEY (session_id) REFERENCES sessions(session_id) ON DELETE CASCADE
);
CREATE INDEX idx_messages_session_id ON messages(session_id);
CREATE INDEX idx_messages_created_at ON messages(created_at);
CREATE INDEX idx_messages_role ON messages(role);
CREATE INDEX idx_messages_session_created ON messages(session_id, created_at);
INSERT INTO users (user_id, username) VALUES ('default_user', 'Developer');
"""


# --- one among many


def _find(path: Path, *, chats: int, alike: int) -> None:
    began = time.monotonic()
    fill(path, chats=chats, alike=alike)
    print(
        f"{chats:,} chats, {path.stat().st_size / 1e6:,.0f} MB, filled in {time.monotonic() - began:.0f} s", flush=True
    )
    connection = sqlite.connect(path)
    for name, histories in _histories(chats).items():
        print(_measured(name, [partial(session_lookup.list_stitched, connection, each) for each in histories]))
    places = session_lookup.list_stitched(connection, _histories(chats)["begins like 100,000 others"][0])
    hashes = hash_chain.chain(_ALIKE, _alike("again"))[::-1]
    session = queries.sessions.get_session(connection, places[0].session_id)
    assert session is not None
    searches: list[Callable[[], object]] = [
        lambda: queries.tree.find_prefix(connection, hashes, session_no=session.session_no)
    ]
    print(_measured("the same, inside one session", searches * _SAMPLES))
    plan = connection.execute("EXPLAIN QUERY PLAN " + named.QUERIES["list_prefix"], {"hashes": b"", "limit": 9})
    print("plan of list_prefix:", *(row[3] for row in plan), sep="\n  ")
    connection.close()


def _histories(chats: int) -> dict[str, list[Exchange]]:
    numbers = [random.randrange(chats // 2) for _ in range(_SAMPLES)]
    known = [[*_said(number), {"role": "user", "content": "and then?"}] for number in numbers]
    unknown = [{"role": ("user", "assistant")[i % 2], "content": f"never said {i}"} for i in range(2 * _TURNS + 1)]
    return {
        "a chat that is stored": [_hashed(f"user {n}", messages) for n, messages in zip(numbers, known, strict=True)],
        "21 messages, none stored": [_hashed("user 1", unknown[:21]) for _ in range(_SAMPLES)],
        "401 messages, none stored": [_hashed("user 1", unknown) for _ in range(_SAMPLES)],
        "begins like 100,000 others": [_hashed(_ALIKE, _alike("again")) for _ in range(_SAMPLES)],
    }


def _hashed(user_id: str, messages: Sequence[Message]) -> Exchange:
    exchange = _exchange(user_id, messages)
    assert exchange.chain  # made before the clock runs: this is of the look-up
    return exchange


def _measured(name: str, searches: Sequence[Callable[[], object]]) -> str:
    times = []
    for search in searches:
        began = time.perf_counter()
        search()
        times.append((time.perf_counter() - began) * 1e3)
    times.sort()
    return f"{name:<30} ms p50 {statistics.median(times):.3f}  p99 {times[len(times) * 99 // 100]:.3f}"


def fill(path: Path, *, chats: int, alike: int) -> None:
    """A database of chats of one turn; the newest `alike` of them are one user's and begin alike."""
    connection = sqlite.connect(path)
    sqlite.prepare(connection)
    found = connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
    ).fetchall()
    for name, _ in found:
        connection.execute(f"DROP INDEX {name}")
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "foreign_keys = OFF", "cache_size = -200000"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    for first in range(0, chats, _BATCH):
        numbers = range(first, min(first + _BATCH, chats))
        _insert(connection, numbers, alike_from=chats - alike)
    for _, statement in found:
        connection.execute(statement)
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.close()


def _insert(connection: SqliteConnection, numbers: range, *, alike_from: int) -> None:
    connection.execute("BEGIN")
    for number in numbers:
        is_alike = number >= alike_from
        user_id = _ALIKE if is_alike else f"user {number}"
        # Every one of them went on: the worst case.
        messages = _alike("more") if is_alike else _said(number)
        now, session_id = ids.timestamp(), ids.uuid7()
        queries.users.upsert_user(connection, user_id=user_id, now=now)
        connection.execute(_INSERT_SESSION, (number + 1, session_id, user_id, now, now))
        connection.executemany(_INSERT_MESSAGE, _rows(number, session_id, user_id, messages, now))
    connection.execute("COMMIT")


def _rows(
    number: int, session_id: str, user_id: str, messages: Sequence[Message], now: str
) -> Iterator[tuple[object, ...]]:
    for depth, (message, hashed) in enumerate(zip(messages, hash_chain.chain(user_id, messages), strict=True)):
        no = 4 * number + depth + 1
        parent_no = no - 1 if depth else None
        yield (
            no,
            ids.uuid7(),
            session_id,
            number + 1,
            parent_no,
            depth,
            hashed,
            message["role"],
            message["content"],
            now,
        )


def _said(number: int) -> list[Message]:
    return [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"answer {number}"}]


def _alike(last: str) -> list[Message]:
    said = [("user", "hi"), ("assistant", "hello"), ("user", last)]
    return [{"role": role, "content": content} for role, content in said]


_INSERT_SESSION = """
INSERT INTO sessions (session_no, session_id, user_id, title, created_at, updated_at) VALUES (?, ?, ?, 'a chat', ?, ?)
"""
_INSERT_MESSAGE = """
INSERT INTO messages (message_no, message_id, session_id, session_no, parent_no, depth, chain_hash, role, content,
                      created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.stitching", description=__doc__)
    parser.add_argument("--chats", type=int, default=1_000_000, help="how many to look among; 0: no search")
    parser.add_argument("--alike", type=int, default=100_000, help="how many of them begin alike")
    parser.add_argument("--dir", type=Path, help="where the databases go: a million chats take about 1 GB")
    return parser.parse_args()


if __name__ == "__main__":
    main()
