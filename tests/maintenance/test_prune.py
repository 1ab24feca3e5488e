"""Prune and retention: what is old goes, in small steps, and the rest stays whole."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from proxy.cli import cli
from proxy.ids import timestamp
from proxy.maintenance import background_jobs, backup, prune
from proxy.storage.sqlite import connect
from tests.engines import environment_of, on_both_engines, on_sqlite_file
from tests.serving import running_proxy, settings_for
from tests.stored import assistant, chat, choice, exchange, fill, opened, outcome, problems_of, say, user

pytestmark = on_both_engines

OLD = "2020-01-01T00:00:00.000Z"


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), env=environment_of(path))


def problems(path: Path) -> list[str]:
    return [problem.kind for problem in problems_of(path)]


def test_what_is_old_goes_and_what_is_not_stays(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        fill(connection)
        archived = say(connection, "archived")
        connection.execute("UPDATE sessions SET is_active = FALSE WHERE session_id = ?", [archived])
        connection.execute("UPDATE sessions SET updated_at = ?", [OLD])
        kept = say(connection, "new")
        dry = json.loads(run(path, "prune", "--older-than", "90d", "--dry-run", "--json").output)
        assert dry["sessions"] > 5
        done = json.loads(run(path, "prune", "--older-than", "90d", "--json", "--yes").output)
        assert {**dry, "before": "", "dry_run": False} == {**done, "before": ""}
        assert connection.execute("SELECT session_id FROM sessions").fetchall() == [(kept,)]
        for table in ("messages", "exchanges JOIN sessions USING (session_no)"):
            assert connection.execute(f"SELECT DISTINCT session_id FROM {table}").fetchall() == [(kept,)]
        assert connection.execute("SELECT COUNT(*) FROM blobs").fetchone() == (0,)
    assert problems(path) == []


def test_a_transaction_deletes_no_more_rows_than_it_may_and_leaves_the_database_whole(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        turns = [user("0")]
        session_id = chat(connection, exchange(turns), outcome(choice("0", finish_reason="stop")))
        for number in range(1, 40):
            turns += [assistant(str(number - 1)), user(str(number))]
            chat(connection, exchange(turns, session_id=session_id), outcome(choice(str(number))))
        for number in range(10):
            say(connection, str(number))
        connection.execute("UPDATE sessions SET updated_at = ?", [OLD])

        def rows() -> int:
            counted = connection.execute("SELECT (SELECT COUNT(*) FROM messages) + (SELECT COUNT(*) FROM exchanges)")
            return int(counted.fetchone()[0])

        while True:
            before = rows()
            with connection.transaction():
                some = prune.prune_some(connection, before=timestamp(), rows=8)
            assert before - rows() <= 8
            assert problems(path) == []
            if not some:
                break
        assert rows() == 0


@on_sqlite_file
def test_the_space_goes_back(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        for number in range(150):
            say(connection, f"{number} " * 8000)
        connection.execute("UPDATE sessions SET updated_at = ?", [OLD])
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        before = path.stat().st_size
        assert run(path, "prune", "--older-than", "1d", "--yes").exit_code == 0
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert path.stat().st_size < before / 2


def test_a_chat_that_goes_on_is_no_longer_old(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        session_id = say(connection, "hello")
        connection.execute("UPDATE sessions SET updated_at = ?", [OLD])
        before = prune.moment_before(timedelta(days=1), now_seconds=time.time())
        turns = [user("hello"), assistant("yes"), user("go on")]
        chat(connection, exchange(turns, session_id=session_id), outcome(choice("well")))
        with connection.transaction():
            assert not prune.prune_some(connection, before=before)


def test_nothing_is_deleted_unasked(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        say(connection, "old")
        connection.execute("UPDATE sessions SET updated_at = ?", [OLD])
        result = run(path, "prune", "--older-than", "0h")
        assert result.exit_code == 2
        assert "--yes" in result.output
        assert connection.execute("SELECT COUNT(*) FROM sessions").fetchone() == (1,)


@pytest.mark.parametrize("age", ("90", "d", "-1d", "1y", "x"))
def test_a_wrong_age_is_refused(tmp_path: Path, age: str) -> None:
    result = run(tmp_path / "chat.db", "prune", "--older-than", age)
    assert result.exit_code == 2
    assert "90d" in result.output


@on_sqlite_file
async def test_a_server_keeps_to_its_retention_and_makes_backups_and_fills_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_jobs, "_HOUR", 0.5)  # nothing is deleted in the first pass
    settings = settings_for(tmp_path, retention_days=90, backup_every_seconds=3600.0, backup_keep=2)
    with opened(settings.database_path) as connection:
        say(connection, "old")
        connection.execute("UPDATE sessions SET updated_at = ?", [OLD])
        say(connection, "new")
    folder = tmp_path / "backups"
    index = settings.database_path.with_name(settings.database_path.name + "-search")

    def is_done(sessions: int) -> bool:
        with closing(connect(settings.database_path)) as connection:
            connection.execute("ATTACH ? AS search", [str(index)])
            try:
                indexed = connection.execute("SELECT COALESCE(SUM(documents), 0) FROM search.segments").fetchone()[0]
            except sqlite3.OperationalError:  # the file is there, and its tables are not yet
                return False
        return sessions == 1 and indexed > 0 and len(backup.copies_in(folder)) == 1

    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as client:
        deadline = time.monotonic() + 30
        while True:
            answer = await client.get("/v1/sessions", params={"user_id": "ann"})
            if index.is_file() and is_done(answer.json()["total"]):
                break
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
