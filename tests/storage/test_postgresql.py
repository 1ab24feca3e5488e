"""The engine for PostgreSQL: its tables, its values, its errors."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

psycopg = pytest.importorskip("psycopg")

from proxy.settings import ConfigurationError
from proxy.storage import postgresql, sqlite
from proxy.storage.errors import StorageError, StorageInterruptedError, StorageUnknownError, trouble
from proxy.storage.named import QUERIES
from proxy.storage.postgresql_errors import translated_errors
from proxy.storage.postgresql_sql import POSTGRESQL_QUERIES, for_many_rows, statement
from proxy.storage.usage import FIRST_TOKEN_COLUMNS
from tests.chats import Chats, said, user
from tests.postgresql import SqlConnection, connect_for_tests, database_url

# Statements that are run for many rows alone.
STORED = (
    *(name for name in POSTGRESQL_QUERIES if name.startswith("ahead_")),
    "count_sessions",
    "count_usage",
    "delete_fragments",
    "delete_jumps",
    "finish_exchange",
    "insert_blob",
    "insert_exchange",
    "insert_fragment",
    "insert_jump",
    "insert_message",
    "insert_message_blob",
    "insert_parameters",
    "insert_tools",
    "insert_upstream",
    "insert_user",
    "raise_message",
    "rechain_message",
    "touch_session",
    "touch_user",
)


@pytest.fixture(scope="module")
def server() -> Iterator[SqlConnection]:
    with database_url() as url, closing(connect_for_tests(url)) as connection:
        yield connection


@pytest.fixture
def url() -> Iterator[str]:
    with database_url() as made:
        yield made


@pytest.mark.parametrize("name", tuple(POSTGRESQL_QUERIES))
def test_query_is_prepared(server: SqlConnection, name: str) -> None:
    prepared = for_many_rows(name) if name in STORED else statement(name)
    server.raw.execute(f"PREPARE one AS {prepared.text}", prepare=False)
    server.raw.execute("DEALLOCATE one", prepare=False)


def test_query_for_many_rows_is_prepared(server: SqlConnection) -> None:
    for name in (*STORED, "insert_session"):
        server.raw.execute(f"PREPARE many AS {for_many_rows(name).text}", prepare=False)
        server.raw.execute("DEALLOCATE many", prepare=False)


@pytest.mark.parametrize("name", ("list_prefix", "find_prefix_in_session", "ahead_prefixes"))
def test_positions_are_looked_up_in_order_until_one_is_found(server: SqlConnection, name: str) -> None:
    """A longer prefix than the first that is found would be missed, or all would be looked up."""
    prepared = for_many_rows(name) if name == "ahead_prefixes" else statement(name)
    server.raw.execute("SET plan_cache_mode = force_generic_plan")
    server.raw.execute(f"PREPARE one AS {prepared.text}", prepare=False)
    values = ", ".join("NULL" for _ in set(re.findall(r"\$\d", prepared.text)))
    plan = [line for (line,) in server.raw.execute(f"EXPLAIN EXECUTE one ({values})", prepare=False)]
    server.raw.execute("DEALLOCATE one", prepare=False)
    server.raw.execute("RESET plan_cache_mode")
    (scan,) = [number for number, line in enumerate(plan) if "on generate_series i" in line]
    assert "Nested Loop" in plan[scan - 1]
    assert "Limit" in plan[scan - 2]


def test_own_queries_take_the_parameters_of_the_shared_ones() -> None:
    for name in set(POSTGRESQL_QUERIES) & set(QUERIES):
        shared = set(re.findall(r"(?<!:):([a-z]\w*)", re.sub(r"--[^\n]*", "", QUERIES[name])))
        assert set(statement(name).names) <= shared


def test_tables_have_the_columns_of_sqlite(server: SqlConnection) -> None:
    with closing(sqlite.connect(Path(":memory:"))) as other:
        sqlite.prepare(other)
        tables = [row[0] for row in other.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        expected = {
            table: {row[1] for row in other.execute(f"PRAGMA table_info({table})")}
            for table in tables
            if table != "sqlite_sequence"
        }
    found: dict[str, set[str]] = {}
    listed = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
    for table, column in server.execute(listed):
        found.setdefault(table, set()).add(column)
    assert {table: columns for table, columns in found.items() if table not in ("stellarchat", "workers")} == expected


@pytest.mark.parametrize("text", ("\0", "a\0\0b", "\ufdd0", "\ufdd00\0\ufdd01", "\U0010ffff", "é" * 5_000_000))
def test_text_comes_back_as_it_was(url: str, text: str) -> None:
    with closing(connect_for_tests(url)) as connection:
        chats = Chats.on(connection)
        session_id = chats.store([user(text)], said(text))
        assert chats.ready(session_id) == [user(text), said(text)]
        assert chats.stitched([user(text), said(text), user("next")]) == session_id


def test_eight_starts_at_once_make_one_database(url: str) -> None:
    def start() -> None:
        connect_for_tests(url).close()

    with ThreadPoolExecutor(8) as pool:
        for started in [pool.submit(start) for _ in range(8)]:
            started.result()


def test_database_of_a_newer_program_is_refused(url: str) -> None:
    with closing(connect_for_tests(url)) as connection:
        connection.raw.execute("INSERT INTO stellarchat VALUES (9999, clock_timestamp())")
        with pytest.raises(ConfigurationError, match="schema 9999"):
            postgresql.prepare(connection)


def test_database_of_another_program_is_refused(url: str) -> None:
    with closing(postgresql.connect(url)) as connection:
        connection.raw.execute("CREATE TABLE theirs (a BIGINT)")
        with pytest.raises(ConfigurationError, match="another program"):
            postgresql.prepare(connection)
        assert postgresql.schema_of(connection) is None


def test_lost_connection_passes(url: str) -> None:
    with closing(connect_for_tests(url)) as connection:
        _cut(connection, url)
        with pytest.raises(StorageError) as caught:
            connection.one("count_everything")
        assert trouble(caught.value) == "later"
        assert connection.is_lost


def test_commit_whose_answer_is_lost_is_unknown(url: str) -> None:
    with closing(connect_for_tests(url)) as connection:
        with pytest.raises(StorageUnknownError), connection.transaction():
            _cut(connection, url)
        assert not connection.in_transaction


def test_wait_for_the_lock_ends(url: str) -> None:
    with closing(connect_for_tests(url)) as one, closing(connect_for_tests(url)) as other:
        other.raw.execute("SET lock_timeout = 50")
        with one.transaction():
            one.begun()
            with pytest.raises(StorageError) as caught, other.transaction():
                pass
            assert trouble(caught.value) == "lock"
        with other.transaction():  # it can be used afterwards
            pass


def test_long_statement_is_interrupted(url: str) -> None:
    with closing(postgresql.connect(url, statement_seconds=0.05)) as connection:
        slow = SqlConnection(connection.raw)
        with pytest.raises(StorageInterruptedError), translated_errors():
            slow.execute("SELECT pg_sleep(5)")


def test_failed_part_of_a_transaction_is_undone_alone(url: str) -> None:
    with closing(connect_for_tests(url)) as connection:
        with connection.transaction():
            connection.changes("upsert_user", {"user_id": "ann", "now": "2026"})
            with pytest.raises(StorageError), connection.savepoint():
                connection.store("raise_message", [{"message_no": 1, "levels": 2**63}])
            connection.changes("upsert_user", {"user_id": "bo", "now": "2026"})
        users = [row[0] for row in connection.execute("SELECT user_id FROM users ORDER BY 1")]
        assert users == ["ann", "bo", "default_user"]


def test_password_is_not_shown() -> None:
    shown = postgresql.without_password("postgresql://me:secret@host:1/db?password=other&x=1")
    assert shown == "postgresql://me:***@host:1/db?password=***&x=1"


def test_types_of_rows_of_values_are_known() -> None:
    text, names = for_many_rows("count_usage")
    assert all(f"c{names.index(name) + 1} BIGINT" in text for name in FIRST_TOKEN_COLUMNS)


def _cut(connection: SqlConnection, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [connection.raw.info.backend_pid])
