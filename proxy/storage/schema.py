"""Checks that a file has exactly the schema of the migrations: no missing table, no foreign trigger.

A foreign trigger in a file could run SQL whenever the program uses a table, so files are compared before use.
"""

import re
import sqlite3
from contextlib import closing
from functools import lru_cache

from proxy.storage import sqlite
from proxy.storage.connection import Connection
from proxy.storage.sqlite_connection import SqliteConnection, translated_errors

_KINDS = frozenset({"table", "index", "trigger", "view"})
# Tables that SQLite creates by itself, for AUTOINCREMENT and ANALYZE.
_SQLITES_OWN = frozenset({"sqlite_sequence", "sqlite_stat1", "sqlite_stat4"})


@translated_errors()
def foreign_objects(connection: Connection) -> list[str]:
    """Objects that are missing, unexpected, or different from the migrations; each described in a few words."""
    assert isinstance(connection, SqliteConnection)
    found, expected = _objects(connection), _expected(_version(connection))
    missing = [f"{_shown(key)} is missing" for key in expected if key not in found]
    foreign = [f"{_shown(key)} does not belong to StellarChat" for key in found if key not in expected]
    other = [
        f"{_shown(key)} differs from StellarChat's"
        for key, sql in found.items()
        if key in expected and expected[key] != sql
    ]
    return [*missing, *foreign, *other]


@lru_cache(maxsize=8)
def _expected(version: int) -> dict[tuple[str, str], str]:
    with closing(sqlite3.connect(":memory:", isolation_level=None, factory=SqliteConnection)) as connection:
        sqlite.prepare(connection, up_to=version)
        return _objects(connection)


def _objects(connection: SqliteConnection) -> dict[tuple[str, str], str]:
    """The SQL of each object by kind and name, without SQLite's internal ones."""
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
    return {
        (kind, name): f"{table} {_normal(sql or '')}"
        for kind, name, table, sql in rows
        if not (kind == "table" and name in _SQLITES_OWN) and not (kind == "index" and sql is None)
    }


def _normal(sql: str) -> str:
    """Removes comments, quotes and spaces: versions of SQLite differ in these after ALTER TABLE."""
    return re.sub(r"[\s\"]+", "", re.sub(r"--[^\n]*", "", sql))


def _shown(key: tuple[str, str]) -> str:
    kind, name = key
    return f"{kind if kind in _KINDS else 'object'} {ascii(str(name)[:60])[1:-1]}"


def _version(connection: SqliteConnection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version
