"""The database file: what is made of a new one, what is refused, and how migrations fail."""

import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from proxy.search.index import Index
from proxy.settings import ConfigurationError
from proxy.storage import queries, search_file, sqlite, wal
from proxy.storage.database import Database
from proxy.storage.errors import StorageError
from proxy.storage.sqlite import APPLICATION_ID, connect, newest_schema, prepare


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return version


def tables_of(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def opened_twice(path: Path) -> None:
    for _ in range(2):
        with closing(connect(path)) as connection:
            prepare(connection)


def test_a_new_file_is_private_and_set_up(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "chat.db"
    opened_twice(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert version_of(path) == newest_schema()
    with closing(connect(path)) as connection:
        asked = ("application_id", "journal_mode", "synchronous", "foreign_keys", "auto_vacuum", "page_size")
        told = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in asked]
    assert told == [APPLICATION_ID, "wal", 2, 1, 2, 1024]


def test_the_tables_columns_and_indexes_of_the_founding_documents_are_there(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    opened_twice(path)
    wanted = {
        "users": "user_id username created_at last_active",
        "sessions": "session_id user_id title created_at updated_at is_active",
        "messages": "message_id session_id role content model tokens created_at metadata",
    }
    indexes = (
        "users_last_active sessions_user_id sessions_created_at sessions_active messages_session_id "
        "messages_created_at messages_role messages_session_created"
    )
    with closing(sqlite3.connect(path)) as connection:
        for table, columns in wanted.items():
            there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            assert set(columns.split()) <= there
        named = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'index'")}
        assert {f"idx_{name}" for name in indexes.split()} <= named
        assert connection.execute("SELECT user_id FROM users").fetchall() == [("default_user",)]


@pytest.mark.parametrize(
    ("version", "words"),
    (
        (9999, "run the newer StellarChat"),
        *((version, "before the first release: export it") for version in (1, 2, 3, 4)),
    ),
)
def test_a_schema_that_this_program_does_not_know_is_refused(tmp_path: Path, version: int, words: str) -> None:
    path = tmp_path / "chat.db"
    opened_twice(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    with closing(connect(path)) as connection, pytest.raises(ConfigurationError, match=words):
        prepare(connection)
    assert version_of(path) == version


@pytest.mark.parametrize("content", (b"not a database, but long enough to be read as one" * 20, b"SQLite format 3\0"))
async def test_what_is_no_database_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "chat.db"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as raised:
        await Database(path).open()
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.commit()
    with pytest.raises(ConfigurationError, match="another program"):
        connect(path)
    assert tables_of(path) == {"theirs"}


def test_a_failed_migration_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat.db"
    opened_twice(path)
    newest = newest_schema()
    broken = "CREATE TABLE half (x);\nINSERT INTO users (user_id) VALUES (NULL);\n"
    migrations = sqlite._migrations()
    monkeypatch.setattr(sqlite, "_migrations", lambda: migrations | {newest + 1: broken})
    with closing(connect(path)) as connection, pytest.raises(StorageError, match="constraint failed"):
        prepare(connection)
    assert version_of(path) == newest
    assert "half" not in tables_of(path)


AN_EXCHANGE_OF_SCHEMA_6 = """
    INSERT INTO sessions (session_no, session_id, user_id, created_at, updated_at)
    VALUES (1, 's', 'default_user', 't', 't');
    INSERT INTO parameters (parameters_no, digest, endpoint, data) VALUES (1, x'00', '/v1/chat/completions', '{}');
    INSERT INTO exchanges (exchange_no, exchange_id, session_no, user_no, status, parameters_no, worker_id, created_at)
    VALUES (1, 'e', 1, 1, 'in_progress', 1, 'w', 't');
    INSERT INTO exchange_fragments VALUES ('e', 1, x'31'), ('e', 0, x'30');
"""


def test_what_was_streaming_comes_along_from_an_earlier_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat.db"
    migrations = sqlite._migrations()
    with monkeypatch.context() as earlier:
        earlier.setattr(sqlite, "_migrations", lambda: {n: text for n, text in migrations.items() if n < 7})
        opened_twice(path)
    with closing(connect(path)) as connection:
        connection.executescript(AN_EXCHANGE_OF_SCHEMA_6)
    opened_twice(path)
    with closing(connect(path)) as connection:
        assert list(queries.fragments.iterate_fragments(connection, "e")) == [b"0", b"1"]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_processes_that_open_a_new_file_at_once_migrate_it_once(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    failures: list[BaseException] = []
    together = threading.Barrier(4)

    def open_it() -> None:
        together.wait()
        try:
            opened_twice(path)
        except BaseException as exc:  # noqa: BLE001 - the test looks at it
            failures.append(exc)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert version_of(path) == newest_schema()


def test_a_log_that_a_long_reader_has_let_grow_gives_its_space_back(tmp_path: Path) -> None:
    path, log = tmp_path / "a.db", tmp_path / "a.db-wal"
    opened_twice(path)
    with closing(connect(path)) as writer, closing(connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM users").fetchone()
        for number in range(20):
            writer.execute("INSERT INTO blobs (digest, data) VALUES (?, ?)", (str(number), "x" * 2**20))
        assert log.stat().st_size > 20 * 2**20
        reader.execute("ROLLBACK")
        writer.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        writer.execute("DELETE FROM blobs WHERE digest = '1'")
        assert log.stat().st_size <= 16 * 2**20


@pytest.mark.parametrize("reader", ("index", "search", "log", "reader"))
def test_nothing_that_reads_makes_an_empty_database_while_the_served_one_is_moved(tmp_path: Path, reader: str) -> None:
    """Its log would lie beside the file that comes back, and empty it."""
    path = tmp_path / "a.db"
    with suppress(StorageError):
        if reader == "index":
            Index(path)
        elif reader == "search":
            with search_file.opened(path):
                pass
        elif reader == "log":
            wal.empty_log(path)
        else:
            sqlite.connect_existing(path)
    assert not list(tmp_path.glob("a.db")) + list(tmp_path.glob("a.db-wal"))
