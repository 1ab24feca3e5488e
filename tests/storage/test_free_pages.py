"""Free pages go back to the disk, on every Python: 3.11 frees one page a statement, whatever it is told."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy.search.index import Index
from proxy.storage import free_pages, search_file
from proxy.storage.sqlite_connection import SqliteConnection
from tests.stored import opened, say


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[SqliteConnection]:
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None, factory=SqliteConnection)) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("CREATE TABLE t (data BLOB)")
        connection.executemany("INSERT INTO t VALUES (zeroblob(?))", [(20_000,)] * 100)
        connection.execute("DELETE FROM t")
        yield connection


def test_all_pages_but_those_kept_go_back(connection: SqliteConnection) -> None:
    assert free_pages.free_page_count(connection) > 400
    assert not free_pages.give_back(connection, kept=100, seconds=60)
    assert free_pages.free_page_count(connection) == 100


def test_a_transaction_around_it_stays_open(connection: SqliteConnection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    assert not free_pages.give_back(connection, kept=0, seconds=60)
    assert connection.in_transaction
    connection.execute("COMMIT")
    assert free_pages.free_page_count(connection) == 0


def test_no_page_goes_back_when_the_time_is_up(connection: SqliteConnection) -> None:
    before = free_pages.free_page_count(connection)
    assert free_pages.give_back(connection, kept=0, seconds=0)
    assert free_pages.free_page_count(connection) == before


def test_a_dropped_segment_of_the_search_index_gives_its_space_back(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        for number in range(40):
            say(connection, " ".join(f"{number}-{other}" for other in range(400)))
        with closing(Index(path)) as index:
            while index.step():
                pass
            connection.execute("DELETE FROM messages")
            assert index.clean() == 1
    with closing(sqlite3.connect(search_file.index_path(path), factory=SqliteConnection)) as index_file:
        assert free_pages.free_page_count(index_file) == 0
