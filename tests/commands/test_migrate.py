"""`stellarchat migrate`: there and back, nothing is changed."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

psycopg = pytest.importorskip("psycopg")

from proxy.access.keys import NewKey, create_key
from proxy.cli import cli
from proxy.maintenance import export
from proxy.maintenance.export import Scope
from proxy.recording.spill import Spill, spill_path
from proxy.storage import migration, sqlite
from proxy.storage.tombstones import add_tombstone
from tests.postgresql import connect_for_tests, database_url
from tests.stored import fill, opened, problems_of, say


@pytest.fixture
def url() -> Iterator[str]:
    with database_url() as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        fill(connection)
        say(connection, "a \0 and \ufdd0 and \ufdd01", user_id="zero\0")
        deleted = say(connection, "deleted")
        connection.execute("DELETE FROM sessions WHERE session_id = ?", [deleted])
        connection.execute("UPDATE sessions SET is_active = FALSE WHERE title LIKE 'fails%'")
        with connection.transaction():
            create_key(connection, NewKey(user_id="ann", is_admin=True, tokens_per_day=5))
            add_tombstone(connection, "user", "gone", now="2026-01-01T00:00:00.000Z")
    return path


def run(folder: Path, *arguments: str) -> Result:
    environment = {"STELLARCHAT_STATE_DIR": str(folder), "DATABASE_URL": f"sqlite:///{folder / 'none.db'}"}
    return CliRunner().invoke(cli, ["migrate", *arguments], env=environment)


def exported(path: Path) -> str:
    with opened(path) as connection:
        return "".join(export.export(connection, Scope(), format_="jsonl"))


def tables(path: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(path)) as connection:
        return {
            table: sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
            for table in (*migration.TABLES, "sqlite_sequence")
        }


def test_there_and_back_is_the_same(path: Path, tmp_path: Path, url: str) -> None:
    back = tmp_path / "back.db"
    there = run(tmp_path, f"sqlite:///{path}", url, "--json")
    assert there.exit_code == 0, there.output
    with closing(connect_for_tests(url)) as connection:
        on_server = "".join(export.export(connection, Scope(), format_="jsonl"))
        next_number = connection.execute("SELECT nextval('messages_message_no_seq')").fetchone()[0]
    assert on_server == exported(path)
    result = run(tmp_path, url, f"sqlite:///{back}")
    assert result.exit_code == 0, result.output
    assert "compared" in result.output
    assert exported(back) == exported(path)
    assert problems_of(back) == problems_of(path)
    before, after = tables(path), tables(back)
    rows = json.loads(there.output)["rows"]
    assert rows == {table: len(before[table]) for table in migration.TABLES}
    assert [table for table in migration.TABLES if after[table] != before[table]] == []
    assert next_number == dict(before["sqlite_sequence"])["messages"] + 1 == dict(after["sqlite_sequence"])["messages"]


def test_every_table_is_migrated() -> None:
    with closing(sqlite.connect(Path(":memory:"))) as connection:
        sqlite.prepare(connection)
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert names - {"sqlite_sequence", "boot_clock"} == set(migration.TABLES)


def test_what_is_not_empty_or_is_served_is_left_alone(path: Path, tmp_path: Path, url: str) -> None:
    with closing(connect_for_tests(url)) as connection:
        say(connection, "mine")  # type: ignore[arg-type]
    filled = run(tmp_path, f"sqlite:///{path}", url)
    assert (filled.exit_code, "not empty" in filled.output) == (2, True)
    spill = Spill(spill_path(tmp_path / "postgresql", "w"), reserve_bytes=0)
    served = run(tmp_path, url, f"sqlite:///{tmp_path / 'new.db'}")
    spill.close()
    assert (served.exit_code, "is in use by a server" in served.output) == (2, True)


@pytest.mark.parametrize("given", (("sqlite:///a.db", "sqlite:///b.db"), ("postgresql://a/b", "postgresql://a/c")))
def test_both_on_one_engine_is_refused(tmp_path: Path, given: tuple[str, str]) -> None:
    result = run(tmp_path, *given)
    assert (result.exit_code, "one of the two" in result.output) == (2, True)


def test_rows_that_differ_are_noticed_and_nothing_is_kept(
    path: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "encoded", lambda text: text.replace("Hello", "Hullo").replace("\0", ""))
    result = run(tmp_path, f"sqlite:///{path}", url)
    assert result.exit_code == 2
    assert "nothing is migrated" in result.output
    with closing(connect_for_tests(url)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM messages").fetchone() == (0,)
