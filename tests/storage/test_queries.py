"""The named queries: each compiles, and each has a function that uses it."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy.storage import named, queries
from proxy.storage.named import QUERIES
from proxy.storage.sqlite_connection import SqliteConnection
from tests.engines import connected

SOURCES = [path.read_text(encoding="utf-8") for path in sorted(Path(queries.__file__).parents[2].rglob("*.py"))]
QUERY_FILES = sorted((named.SQL / "queries").glob("*.sql"))


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[SqliteConnection]:
    with closing(connected(tmp_path / "test.db")) as opened:
        yield opened


@pytest.mark.parametrize("name", tuple(QUERIES))
def test_query_compiles(connection: SqliteConnection, name: str) -> None:
    parameters = dict.fromkeys(re.findall(r":([a-z]\w*)", QUERIES[name]))
    assert connection.execute("EXPLAIN " + QUERIES[name], parameters).fetchall()


@pytest.mark.parametrize("name", tuple(QUERIES))
def test_query_is_used(name: str) -> None:
    assert any(f'"{name}"' in source for source in SOURCES)


def test_query_names_are_unique() -> None:
    names = [
        name for file in QUERY_FILES for name in re.findall(r"^-- name: *(\w+)", file.read_text(), flags=re.MULTILINE)
    ]
    assert len(names) == len(set(names)) == len(QUERIES) > 0


@pytest.mark.parametrize(
    ("name", "index"),
    (
        ("newest_deletion", "SEARCH tombstones USING COVERING INDEX idx_tombstones_deleted_at"),
        ("was_deleted", "PRIMARY KEY (digest=?"),
        ("delete_old_tombstones", "idx_tombstones_deleted_at (deleted_at<?"),
        ("list_sessions", "idx_sessions_user_id (user_id=?"),
        ("list_session_ids", "idx_sessions_user_id (user_id=?"),
        ("count_sessions_between", "idx_sessions_user_id (user_id=?"),
        ("find_session_id", "idx_sessions_external_id (user_id=? AND external_id=?"),
        ("list_exchanges", "idx_exchanges_session_no (session_no=?"),
        ("scan_exchanges_of_user", "idx_exchanges_user_no (user_no=? AND exchange_id>?"),
        ("scan_exchanges_of_user_newest_first", "idx_exchanges_user_no (user_no=? AND exchange_id<?"),
        ("scan_exchanges_of_session", "idx_exchanges_session_no (session_no=?"),
        ("scan_exchanges_of_session_newest_first", "idx_exchanges_session_no (session_no=?"),
        ("find_stored_exchange", "idx_exchanges_completion_id (user_no=? AND completion_id=?"),
        ("find_stored_exchange_of_anyone", "idx_exchanges_completion_id (user_no=? AND completion_id=?"),
        ("list_replies", "idx_messages_parent_no (session_no=? AND parent_no=?"),
        ("delete_message_at_end", "idx_exchanges_session_no (session_no=?"),
        ("get_message", "idx_messages_parent_no (session_no=? AND parent_no=?"),
        ("list_path", "INTEGER PRIMARY KEY (rowid=?"),
        ("newest_leaf_below", "idx_messages_parent_no (session_no=? AND parent_no=?"),
        ("reparent", "idx_messages_parent_no (session_no=? AND parent_no=?"),
        ("list_leaves", "idx_messages_parent_no (session_no=? AND parent_no=?"),
        ("move_requests", "idx_exchanges_session_no (session_no=?"),
        ("touch_session", "sqlite_autoindex_sessions_1 (session_id=?"),
        ("finish_exchange", "SEARCH exchanges USING INTEGER PRIMARY KEY (rowid=?"),
        ("insert_fragment", "sqlite_autoindex_exchanges_1 (exchange_id=?"),
        ("delete_fragments", "sqlite_autoindex_exchange_fragments_1 (exchange_no=?"),
        ("list_fragments", "sqlite_autoindex_exchange_fragments_1 (exchange_no=?"),
    ),
)
def test_query_reads_no_more_than_it_shows(connection: SqliteConnection, name: str, index: str) -> None:
    parameters = dict.fromkeys(re.findall(r":([a-z]\w*)", QUERIES[name]))
    plan = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + QUERIES[name], parameters)]
    assert any(index in line for line in plan), plan
    sorts = [line for line in plan if "TEMP B-TREE" in line]
    # The first sorts two rows at most; the next two those of one id; the others what one session has.
    sorted_ = (
        "find_session_id",
        "find_stored_exchange",
        "find_stored_exchange_of_anyone",
        "list_leaves",
        "scan_exchanges_of_session",
        "scan_exchanges_of_session_newest_first",
    )
    assert not sorts or name in sorted_, plan
