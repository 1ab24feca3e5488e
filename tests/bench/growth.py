"""`python -m tests.bench.growth`: does a chat, a read, a list or a search cost more when millions are stored?"""

import argparse
import contextlib
import dataclasses
import http.client
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from proxy import ids
from proxy.search.index import Index
from proxy.storage import sqlite
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.wire import hash_chain
from tests.bench import accounting, figures, machine, phases, relays, wire
from tests.bench.client import Load

_TURNS = 10  # a question and an answer each
_SESSIONS_A_USER = 50
_HEAVY = "heavy"  # one user with a tenth of all sessions
_BEGAN = 1_700_000_000  # Unix seconds of the first session
_SESSIONS_A_BATCH = 2_000
_SAMPLES = 400
_TEXT = (
    "river bridge engine paper window garden signal copper winter market planet thread silver mirror forest number "
    "harbour candle button ladder pocket saddle velvet meadow anchor basket cotton dragon empire fabric guitar hammer"
)
_WORDS = _TEXT.split()


class ProbeError(Exception):
    """A request was not answered with 200: the probe has no figure."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """A session that is there to be asked for."""

    session_id: str
    user_id: str
    messages: tuple[dict[str, str], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """One request of a probe."""

    path: str
    body: dict[str, object] | None = None


def main() -> None:
    options = _options()
    machine.prepare(cores=2)
    sizes = (options.small, options.messages)
    with tempfile.TemporaryDirectory(prefix="growth-", dir=options.dir) as folder:
        made = {
            messages: make(Path(folder) / f"{messages}.db", messages=messages, search=options.search)
            for messages in sizes
        }
        # Both are made first: what is compared is measured at the same time of day.
        results = {messages: _at(Path(folder) / f"{messages}.db", made[messages], options) for messages in sizes}
    small, large = results[options.small], results[options.messages]
    head = ("", f"{options.small:,} messages", f"{options.messages:,}", "ratio")
    print("{:<34} {:>20} {:>20} {:>7}".format(*head))
    for name, value in small.items():
        if name not in large:
            continue
        ratio = large[name] / value if value else float("nan")
        print(f"{name:<34} {figures.number(value):>20} {figures.number(large[name]):>20} {ratio:>7.2f}")


def make(path: Path, *, messages: int, search: bool = True) -> list[Stored]:
    """A database of so many messages, with its search index where that is wanted."""
    began = time.monotonic()
    stored = fill(path, messages=messages)
    size = path.stat().st_size
    print(f"filled {messages:,} messages, {size / 1e6:,.0f} MB, {time.monotonic() - began:.0f} s", file=sys.stderr)
    if search:
        _index(path)  # or the server would, while it is measured
        print(f"indexed after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    os.sync()  # or the disk would be busy with gigabytes while chats wait for it
    return stored


def _at(path: Path, stored: list[Stored], options: argparse.Namespace) -> dict[str, float]:
    """Serve a database, and measure."""
    relay = relays.Relay(
        "strict",
        "StellarChat, strict",
        lambda place: relays.stellarchat(
            place, DATABASE_URL=f"sqlite:///{path}", STELLARCHAT_SEARCH_INDEX="on" if options.search else "off"
        ),
    )
    commands = os.environ.get("PATH", "")
    with (
        relays.upstream() as upstream,
        relays.running(relay, upstream_port=upstream.port, commands=commands, work=options.dir, start_s=120) as running,
    ):
        probes = {name: asked for name, asked in _probes(stored).items() if options.search or "search" not in name}
        return dict(_measure(running, probes, seconds=options.seconds))


def _index(path: Path) -> None:
    with contextlib.closing(Index(path)) as index:
        while index.step():
            pass


def _measure(running: relays.Running, probes: dict[str, list[Asked]], *, seconds: float) -> Iterator[tuple[str, float]]:
    assert running.pid is not None
    cpu = accounting.cpu_seconds(running.pid)
    load = Load(port=running.port, stream=False, connections=32, seconds=seconds, deadline_s=seconds + 60)
    outcome = phases.perform(load, label=1)
    if outcome.errors or not outcome.finished:
        raise SystemExit(f"new chats: {outcome.errors}")
    yield "new chats, CPU µs", (accounting.cpu_seconds(running.pid) - cpu) * 1e6 / outcome.finished
    yield "new chats/s, 32 connections", outcome.finished / outcome.elapsed_s
    for name, asked in probes.items():
        cpu = accounting.cpu_seconds(running.pid)
        try:
            times = _ask(running.port, asked)
        except ProbeError as exc:
            print(f"{name}: {exc}", file=sys.stderr)
            continue
        yield f"{name}, ms p50", statistics.median(times)
        yield f"{name}, ms p99", figures.quantile(times, 0.99)
        yield f"{name}, CPU µs", (accounting.cpu_seconds(running.pid) - cpu) * 1e6 / len(times)


def _probes(stored: list[Stored]) -> dict[str, list[Asked]]:
    words = itertools.cycle(_WORDS)
    users = [each.user_id for each in stored]
    return {
        "continued chat": [_continued(each) for each in stored],
        "GET messages": [Asked(f"/v1/sessions/{each.session_id}/messages") for each in stored],
        "GET sessions": [Asked(f"/v1/sessions?user_id={user}") for user in users],
        "GET sessions, heavy user": [Asked(f"/v1/sessions?user_id={_HEAVY}") for _ in users],
        "search": [Asked(f"/v1/search?q={quote(next(words))}&user_id={user}") for user in users],
        "search, heavy user": [Asked(f"/v1/search?q={quote(next(words))}&user_id={_HEAVY}") for _ in users[:50]],
    }


def _continued(each: Stored) -> Asked:
    """A resent history without an id, and one question more: it has to be found and goes below what is stored."""
    messages = [*each.messages, {"role": "user", "content": f"And then? {random.random()}"}]
    return Asked("/v1/chat/completions", {"model": wire.MODEL, "user": each.user_id, "messages": messages})


def _ask(port: int, asked: Iterable[Asked]) -> list[float]:
    """The milliseconds each request took, one after the other on one connection. Raises ProbeError where one fails."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    times = []
    try:
        for each in asked:
            body = json.dumps(each.body) if each.body is not None else None
            began = time.monotonic()
            connection.request("GET" if body is None else "POST", each.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            reply = response.read()
            times.append((time.monotonic() - began) * 1e3)
            if response.status != 200:
                raise ProbeError(f"{each.path}: {response.status} {reply[:200].decode(errors='replace')}")
    finally:
        connection.close()
    return times


def fill(path: Path, *, messages: int) -> list[Stored]:
    """Make a database with so many messages in sessions of twenty, and give out some of the sessions."""
    sessions = max(1, messages // (2 * _TURNS))
    sampled = set(random.Random(7).sample(range(sessions), min(_SAMPLES, sessions)))
    stored = []
    connection = sqlite.connect(path)
    try:
        sqlite.prepare(connection)
        indexes = _without_indexes(connection)
        for first in range(0, sessions, _SESSIONS_A_BATCH):
            batch = _Batch()
            for number in range(first, min(first + _SESSIONS_A_BATCH, sessions)):
                if number in sampled:
                    stored.append(batch.add(number, hashes=_true_hashes))
                else:
                    batch.add(number, hashes=_any_hashes)
            batch.write(connection)
        for statement in indexes:
            connection.execute(statement)
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
    finally:
        connection.close()
    return stored


def _without_indexes(connection: SqliteConnection) -> list[str]:
    """Take the indexes away and give out the statements that make them: sorted at the end they cost far less."""
    found = connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
    ).fetchall()
    for name, _ in found:
        connection.execute(f"DROP INDEX {name}")
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "foreign_keys = OFF", "cache_size = -500000"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return [statement for _, statement in found]


class _Batch:
    """The rows of some sessions, as the program would have stored them."""

    def __init__(self) -> None:
        self.users: list[tuple[object, ...]] = []
        self.sessions: list[tuple[object, ...]] = []
        self.messages: list[tuple[object, ...]] = []
        self.exchanges: list[tuple[object, ...]] = []

    def add(self, number: int, *, hashes: "Hashes") -> Stored:
        user_id = _HEAVY if number % 10 == 0 else f"user-{number // _SESSIONS_A_USER}"
        session_id = ids.uuid7()
        now = ids.timestamp(_BEGAN + number)
        first_no = number * 2 * _TURNS + 1
        said = [
            {"role": "assistant" if depth % 2 else "user", "content": _text(number, depth)}
            for depth in range(2 * _TURNS)
        ]
        for depth, (message, chain_hash) in enumerate(zip(said, hashes(user_id, said), strict=True)):
            no = first_no + depth
            # Unique and rising, as version 7 is, at a tenth of what a true one costs.
            message_id, exchange_id = f"{session_id[:24]}{no:012x}", f"{session_id[:24]}{no | 1:012x}"
            exchange_no = (no + 1) // 2
            is_reply = depth % 2
            if not is_reply:
                self.exchanges.append((exchange_no, exchange_id, number + 1, user_id, no, now))
            place = (no, message_id, session_id, number + 1, no - 1 if depth else None, depth, chain_hash, exchange_no)
            what = (message["role"], message["content"], wire.MODEL if is_reply else None, 40 * is_reply, now)
            self.messages.append((*place, *what))
        self.users.append((user_id, now, now))
        leaf_no = first_no + 2 * _TURNS - 1
        title = said[0]["content"][:80]
        self.sessions.append((number + 1, session_id, user_id, title, leaf_no, 2 * _TURNS, 40 * _TURNS, now, now))
        return Stored(session_id, user_id, tuple(said))

    def write(self, connection: SqliteConnection) -> None:
        connection.execute("BEGIN")
        connection.executemany(_INSERT_USER, self.users)
        connection.executemany(_INSERT_SESSION, self.sessions)
        connection.executemany(_COUNT_SESSION, [(user_id,) for user_id, *_ in self.users])
        connection.execute(_INSERT_PARAMETERS, (wire.MODEL,))
        connection.executemany(_INSERT_MESSAGE, self.messages)
        connection.executemany(_INSERT_EXCHANGE, self.exchanges)
        connection.execute("COMMIT")


def _text(session: int, depth: int) -> str:
    """Some 130 characters, of words that come back everywhere and of a number that does not."""
    return f"{_TEXTS[(session * 7 + depth * 13) % len(_TEXTS)]} {session}.{depth}"


_TEXTS = [" ".join(_WORDS[(start + i * i) % len(_WORDS)] for i in range(17)) for start in range(len(_WORDS))]

Hashes = Callable[[str, Sequence[dict[str, str]]], Iterable[bytes]]


def _true_hashes(user_id: str, messages: Sequence[dict[str, str]]) -> Iterable[bytes]:
    return hash_chain.chain(user_id, messages)


def _any_hashes(user_id: str, messages: Sequence[dict[str, str]]) -> Iterable[bytes]:
    """For sessions that nobody will continue: as scattered as true ones, and far cheaper."""
    return (random.randbytes(16) for _ in messages)


_INSERT_USER = """
INSERT INTO users (user_id, created_at, last_active) VALUES (?, ?, ?) ON CONFLICT DO NOTHING
"""
_INSERT_SESSION = """
INSERT INTO sessions (session_no, session_id, user_id, title, leaf_no, message_count, tokens, created_at, updated_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_INSERT_MESSAGE = """
INSERT INTO messages (message_no, message_id, session_id, session_no, parent_no, depth, chain_hash, exchange_no, role,
                      content, model, tokens, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_INSERT_EXCHANGE = """
INSERT INTO exchanges (exchange_no, exchange_id, session_no, user_no, leaf_no, status, http_status, finish_reason,
                       prompt_tokens, completion_tokens, total_tokens, time_to_first_token_ms, duration_ms,
                       parameters_no, completion_id, completion_created, created_at)
SELECT ?1, ?2, ?3, user_no, ?5, 'completed', 200, 'stop', 60, 40, 100, 30, 900, 1, '', 1790000000, ?6
FROM users
WHERE user_id = ?4
"""
_COUNT_SESSION = """
UPDATE users
SET session_count = session_count + 1, active_session_count = active_session_count + 1
WHERE user_id = ?
"""
_INSERT_PARAMETERS = """
INSERT INTO parameters (parameters_no, digest, endpoint, model, data)
VALUES (1, x'00', '/v1/chat/completions', ?, '{"temperature":0.7,"max_tokens":400}')
ON CONFLICT DO NOTHING
"""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000_000)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument(
        "--no-search", dest="search", action="store_false", help="without the index, which takes longest"
    )
    parser.add_argument("--seconds", type=float, default=5, help="how long new chats are recorded")
    parser.add_argument("--dir", type=Path, help="where the databases go: 10 million messages take some 10 GB")
    return parser.parse_args()


if __name__ == "__main__":
    main()
