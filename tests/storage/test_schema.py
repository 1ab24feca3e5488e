"""A file whose schema is not that of the migrations is known, whatever was done to it."""

import sqlite3
from pathlib import Path

import pytest

from proxy.storage import schema, sqlite
from tests.stored import fill, opened


def test_a_database_of_ours_has_nothing_foreign(tmp_path: Path) -> None:
    with opened(tmp_path / "chat.db") as connection:
        fill(connection)
        connection.execute("ANALYZE")
        assert schema.foreign_objects(connection) == []


def test_nor_has_one_of_an_older_version(tmp_path: Path) -> None:
    connection = sqlite.connect(tmp_path / "chat.db")
    sqlite.prepare(connection, up_to=6)
    assert schema.foreign_objects(connection) == []
    sqlite.prepare(connection)
    assert schema.foreign_objects(connection) == []
    connection.close()


@pytest.mark.parametrize(
    "done",
    (
        "CREATE TRIGGER more AFTER INSERT ON messages BEGIN UPDATE api_keys SET is_admin = 1; END",
        "CREATE TEMP TABLE x (a); CREATE TRIGGER main.t INSTEAD OF INSERT ON v BEGIN SELECT 1; END",
        "CREATE VIEW v AS SELECT * FROM api_keys",
        "CREATE TABLE other (a)",
        "CREATE INDEX one_more ON messages (content)",
        "DROP TABLE api_keys",
        "DROP INDEX idx_messages_chain_hash",
        "DROP TRIGGER sessions_counted_out",
        "DROP TABLE tombstones; CREATE VIEW tombstones AS SELECT x'00' AS digest, 'user' AS kind, '' AS deleted_at",
        "ALTER TABLE users ADD COLUMN other TEXT",
        "DROP TRIGGER sessions_counted_out; CREATE TRIGGER sessions_counted_out AFTER DELETE ON sessions "
        "BEGIN UPDATE api_keys SET is_admin = 1; END",
        "DROP TRIGGER sessions_counted_out; CREATE TRIGGER sessions_counted_out AFTER DELETE ON users "
        "BEGIN SELECT 1; END",
        "CREATE VIRTUAL TABLE f USING fts5 (a)",
        "PRAGMA writable_schema = ON; INSERT INTO sqlite_schema VALUES ('trigger', 'sqlite_stat1', 'users', 0, 'x')",
    ),
)
def test_what_is_foreign_or_missing_is_named(tmp_path: Path, done: str) -> None:
    with opened(tmp_path / "chat.db") as connection:
        if "ON v " in done:
            connection.execute("CREATE VIEW v AS SELECT 1 AS a")
        for statement in done.split("; ") if "BEGIN" not in done else [done]:
            try:
                connection.execute(statement)
            except (sqlite3.Warning, sqlite3.ProgrammingError):
                connection.executescript(done + ";")
        assert schema.foreign_objects(connection)
