"""`python -m tests.bench.floor`: what storing a whole JSON chat durably costs, and the least of it with our schema.

storing   the program's own way, from an exchange and its outcome to the commit, without the server around it
rows      the same statements with the same parameters, written down beforehand: nothing is decided in between
commits   what of `rows` the COMMIT statements take: the pages of the log, and those brought into the file now and then

and then what its messages cost the search index, and what of that is FTS5's own work.

Processor time of one thread that does nothing else: what the kernel does for it counts, waits for the disk do not.
Medians over the rounds. Databases are set up as the server's are, so that a commit is on the disk when it returns.
"""

import argparse
import contextlib
import gc
import itertools
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from proxy import ids
from proxy.search import index as search_index
from proxy.storage import exchange_store, queries, search_file, sqlite
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.write_batch import write_batch
from proxy.wire.chat_reply import Completion
from tests.bench import figures, machine, wire

_A_COMMIT = (1, 16, 32)
_WARM_UP = 320  # chats before the clock starts: a multiple of each of the above

Chat = tuple[Exchange, Outcome]
Asked = tuple[str, Any]  # a statement and its parameters


class Cost(NamedTuple):
    """Processor time a chat, in microseconds."""

    storing: float
    rows: float
    commits: float


class IndexCost(NamedTuple):
    """The same, of the search index."""

    indexing: float
    fts5: float


def main() -> None:
    options = _options()
    machine.prepare(cores=2)
    here = machine.describe()
    with tempfile.TemporaryDirectory(prefix="floor-", dir=options.dir) as name:
        folder = Path(name)
        print("CPU µs to store a whole JSON chat")
        heads = ("chats a commit", "storing", "rows", "of it commits", "storing / rows", "log pages a chat")
        print(*(f"{head:>16}" for head in heads))
        for a_commit in _A_COMMIT:
            costs = [_cost(folder, options.chats, a_commit=a_commit) for _ in range(options.rounds)]
            median = Cost(*map(statistics.median, zip(*costs, strict=True)))
            pages, entries = _footprint(folder, options.chats, a_commit=a_commit)
            cells = (a_commit, *median, median.storing / median.rows, pages)
            print(*(f"{cell if isinstance(cell, int) else figures.number(cell):>16}" for cell in cells), flush=True)
        costs_of_index = [_index_cost(folder, options.chats) for _ in range(options.rounds)]
    index = IndexCost(*map(statistics.median, zip(*costs_of_index, strict=True)))
    print(f"A chat makes {entries:.1f} index entries. `rows` is the floor: what is left where nothing is decided.")
    indexing, fts5 = map(figures.number, index)
    print(f"Its messages cost the search index {indexing} µs, {fts5} of which are FTS5's.")
    print(f"SQLite {sqlite3.sqlite_version}, {machine.line(here)}")


def _cost(folder: Path, chats: int, *, a_commit: int) -> Cost:
    """Both ways one after the other, so that what else the machine does meets both."""
    made = _chats(_WARM_UP + chats)
    with _opened(folder) as connection:
        _store(connection, made[:_WARM_UP], a_commit=a_commit)
        _freeze()
        began = time.thread_time()
        _store(connection, made[_WARM_UP:], a_commit=a_commit)
        whole = time.thread_time() - began
    warm_up, transactions = _written_down(folder, chats, a_commit=a_commit)
    with _opened(folder) as connection:
        _repeat(connection, warm_up)
        _freeze()
        began = time.thread_time()
        commits = _repeat(connection, transactions)
        rows = time.thread_time() - began
    return Cost(*(seconds * 1e6 / chats for seconds in (whole, rows, commits)))


def _index_cost(folder: Path, chats: int) -> IndexCost:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "x.db"
        with contextlib.closing(sqlite.connect(path)) as connection:
            sqlite.prepare(connection)
            _store(connection, _chats(chats), a_commit=16)
            messages = connection.execute("SELECT message_no, content FROM messages ORDER BY message_no").fetchall()
        with contextlib.closing(search_index.Index(path)) as index:
            began = time.thread_time()
            while index.step():
                pass
            indexing = time.thread_time() - began
        fts5 = _fts5_cost(Path(name) / "other.db", messages)
    return IndexCost(*(seconds * 1e6 / chats for seconds in (indexing, fts5)))


def _fts5_cost(path: Path, messages: Sequence[tuple[int, str]]) -> float:
    """Of messages as the search index puts them in: as many a transaction, in a table like its own."""
    entries = [{"message_no": number, "text": text, "owner": "abc"} for number, text in messages]
    with contextlib.closing(search_file.open_index(path)) as connection:
        connection.execute(search_file.statement("create_segment", 0))
        began = time.thread_time()
        for start in range(0, len(entries), search_index._BATCH):
            with connection.transaction():
                batch = entries[start : start + search_index._BATCH]
                connection.executemany(search_file.statement("insert_grams", 0), batch)
        return time.thread_time() - began


def _footprint(folder: Path, chats: int, *, a_commit: int) -> tuple[float, float]:
    """Pages that a chat writes to the log, and index entries that it makes."""
    warm_up, transactions = _written_down(folder, chats, a_commit=a_commit)
    with _opened(folder) as connection:
        _repeat(connection, warm_up)
        entries = _index_entries(connection)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute("PRAGMA wal_autocheckpoint = 0").fetchone()  # the log is counted when all of it is there
        _repeat(connection, transactions)
        _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return pages / chats, (_index_entries(connection) - entries) / chats


def _index_entries(connection: SqliteConnection) -> int:
    """How many entries all indexes have. https://sqlite.org/fileformat2.html#the_sqlite_stat1_table"""
    connection.execute("ANALYZE")
    found = connection.execute("SELECT stat FROM sqlite_stat1 WHERE idx IS NOT NULL")
    return sum(int(stat.split()[0]) for (stat,) in found)


# --- the two ways


def _store(connection: SqliteConnection, chats: Sequence[Chat], *, a_commit: int) -> None:
    for start in range(0, len(chats), a_commit):
        with write_batch(connection) as rows:
            for exchange, outcome in chats[start : start + a_commit]:
                exchange_store.finish(rows, exchange, outcome)


def _repeat(connection: SqliteConnection, transactions: Sequence[Sequence[Asked]]) -> float:
    """Run transactions that were written down; what their commits took."""
    commits = 0.0
    for statements in transactions:
        for statement, parameters in statements:
            connection.execute(statement, parameters).fetchone()
        began = time.thread_time()
        connection.execute("COMMIT")
        commits += time.thread_time() - began
    return commits


class _Writing(SqliteConnection):
    """A connection that also writes down what it is asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[Asked] = []

    def execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        self.asked.append((statement, parameters))
        return super().execute(statement, parameters)


def _written_down(folder: Path, chats: int, *, a_commit: int) -> tuple[list[list[Asked]], list[list[Asked]]]:
    """What the program asks of a new database, by transaction: to warm up, and then."""
    with _opened(folder) as connection:
        file = next(path for _, name, path in connection.execute("PRAGMA database_list") if name == "main")
        writing = sqlite3.connect(file, isolation_level=None, factory=_Writing)
        with contextlib.closing(writing):
            _store(writing, _chats(_WARM_UP + chats), a_commit=a_commit)
    transactions = list(_transactions(writing.asked))
    return transactions[: _WARM_UP // a_commit], transactions[_WARM_UP // a_commit :]


def _transactions(asked: Sequence[Asked]) -> Iterator[list[Asked]]:
    """Each without its COMMIT."""
    for is_end, statements in itertools.groupby(asked, key=lambda each: each[0] == "COMMIT"):
        if not is_end:
            yield list(statements)


# --- what both have


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[SqliteConnection]:
    """A new database as the server makes it."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        connection = sqlite.connect(Path(name) / "x.db")
        try:
            sqlite.prepare(connection)
            yield connection
        finally:
            connection.close()


def _chats(count: int) -> list[Chat]:
    """Chats as the benchmark's client asks them and its upstream answers them: the reply is read, nothing is stored."""
    request, reply = wire.chat_request(host="localhost", stream=False), wire.whole_reply()
    return [_chat((b"%08d" % number).join(request), (b"%016x" % number).join(reply)) for number in range(count)]


def _chat(request: bytes, reply: bytes) -> Chat:
    request_id = ids.uuid7()
    exchange = Exchange(
        exchange_id=request_id,
        user_id=queries.users.DEFAULT_USER_ID,
        session=SessionRef(ids.uuid7(), "new"),
        endpoint="/v1/chat/completions",
        request_id=request_id,
        request=json.loads(request.partition(b"\r\n\r\n")[2]),
    )
    completion = Completion.from_body(wire.body_of(reply))
    return exchange, Outcome(status="completed", http_status=200, reply=completion, duration_ms=1)


def _freeze() -> None:
    """What was made before the clock starts is not searched for garbage while it runs, as in the server."""
    gc.collect()
    gc.freeze()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.floor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chats", type=int, default=3_200, help="how many a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where the databases go while it runs (default: the system's place)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
