"""The engines that tests of what is stored run on.

With the fixture `engine` a test runs once on each: a path then stands for an SQLite file, or for a PostgreSQL database
that is made when it is first named and dropped at the end of the test.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from proxy.settings import Settings
from proxy.storage import sqlite

ENGINES = ("sqlite", "postgresql")
# Of tests that look into an SQLite file.
on_sqlite = pytest.mark.parametrize("chats", ("sqlite",), indirect=True)
on_sqlite_file = pytest.mark.parametrize("engine", ("sqlite",), indirect=True)
# Of a module, all of whose tests run on both engines.
on_both_engines = pytest.mark.usefixtures("engine")


class _Databases:
    """The PostgreSQL databases of a test, by the paths that stand for them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._urls: dict[Path, str] = {}

    def url(self, path: Path) -> str:
        """The database of a path, made where it is new."""
        from tests.postgresql import database_url

        if path not in self._urls:
            self._urls[path] = self._stack.enter_context(database_url(has_tables=True))
        return self._urls[path]


_databases: list[_Databases] = []  # at most one: those of the test that runs


@contextmanager
def databases_of(engine: str) -> Iterator[None]:
    """Let paths stand for databases of this engine. Skips the test where PostgreSQL cannot be had."""
    if engine == "sqlite":
        yield
        return
    pytest.importorskip("psycopg")
    with ExitStack() as stack:
        _databases.append(_Databases(stack))
        stack.callback(_databases.pop)
        yield


def url_of(path: Path) -> str:
    """The DATABASE_URL of the database that a path stands for."""
    return _databases[0].url(path) if _databases else f"sqlite:///{path}"


def name_of(path: Path) -> str:
    """The database of a path as commands show it."""
    return Settings(database_url=url_of(path)).database_name


def environment_of(path: Path) -> dict[str, str]:
    """What a command is told of its database by."""
    state = {"STELLARCHAT_STATE_DIR": str(path.parent / "state")} if _databases else {}
    return {"DATABASE_URL": url_of(path), **state}


def connected(place: Path | str) -> Any:
    """A connection that takes SQL text, to a path's database, or one with a URL; its tables are made where needed."""
    if isinstance(place, Path) and not _databases:
        make_tables(place)
        connection = sqlite.connect(place)
        sqlite.prepare(connection)
        return connection
    from tests.postgresql import connect_for_tests

    return connect_for_tests(url_of(place) if isinstance(place, Path) else place)


def make_tables(path: Path) -> None:
    """A new SQLite file as the migrations leave it: a copy takes a hundredth of their time.

    Where something of an earlier database has stayed, the program makes the new one, in tests of what it then does.
    """
    if not path.is_absolute():
        return
    with suppress(OSError):  # the program says so
        path.parent.mkdir(parents=True, exist_ok=True)
        if not any(path.name in each.name for each in path.parent.iterdir()):
            path.touch(mode=0o600)
            path.write_bytes(_file_with_tables())


@lru_cache(maxsize=1)
def _file_with_tables() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        with closing(sqlite.connect(path)) as connection:
            sqlite.prepare(connection)
        return path.read_bytes()


def rows_of(path: Path, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """What another program finds in the database of a path; the rows that a statement gives."""
    with closing(connected(path)) as connection:
        cursor = connection.execute(statement, values)
        return list(cursor.fetchall()) if cursor.description else []


@contextmanager
def place_of(engine: str, path: Path) -> Iterator[Path | str]:
    """Where `Chats` keeps its database: a file for `sqlite`, a new database for `postgresql`, where that can be had."""
    with databases_of(engine):
        yield path if engine == "sqlite" else url_of(path)
