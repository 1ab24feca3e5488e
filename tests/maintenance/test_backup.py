"""Backup and restore: under load, and what they refuse."""

import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from proxy.cli import cli
from proxy.demo import MODEL
from proxy.maintenance import backup
from proxy.maintenance.job import Lease, jobs_lock_path
from proxy.recording.spill import Spill, spill_path
from proxy.settings import ConfigurationError
from proxy.storage.sqlite import connect
from tests.serving import REPOSITORY, server_process
from tests.stored import fill, opened, say


def quiet(_done: int, _total: int) -> None:
    """No progress."""


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), env={"DATABASE_URL": f"sqlite:///{path}"})


def contents(path: Path) -> list[tuple[str, ...]]:
    with closing(connect(path)) as connection:
        return connection.execute("SELECT message_id, content FROM messages ORDER BY message_no").fetchall()


def test_a_copy_made_under_load_holds_every_chat_that_had_ended(tmp_path: Path) -> None:
    ended: list[str] = []
    stop = threading.Event()

    def talk(worker: int) -> None:
        with httpx.Client(timeout=30) as client:
            turn = 0
            while not stop.is_set():
                turn += 1
                text = f"worker {worker} turn {turn} " + "x" * 1600
                body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
                client.post(f"{server.url}/v1/chat/completions", json=body).raise_for_status()
                ended.append(text)

    def command(path: Path, *arguments: str) -> None:
        environment = {**os.environ, "DATABASE_URL": f"sqlite:///{path}", "PYTHONPATH": str(REPOSITORY)}
        subprocess.run(
            [sys.executable, "-m", "proxy", *arguments], check=True, env=environment, cwd=tmp_path, timeout=120
        )

    with server_process(tmp_path, "http://127.0.0.1:9", "--demo") as server:
        talkers = [threading.Thread(target=talk, args=(number,)) for number in range(3)]
        for talker in talkers:
            talker.start()
        try:
            while len(ended) < 30 and talkers[0].is_alive():
                stop.wait(0.01)
            known = list(ended)
            command(tmp_path / "stellarchat.db", "backup", str(tmp_path / "copy.db"))
            during = len(ended)
        finally:
            stop.set()
            for talker in talkers:
                talker.join(30)
        assert server.stop() == 0
    assert during > len(known)  # chats went on
    command(tmp_path / "other" / "chat.db", "restore", str(tmp_path / "copy.db"))
    command(tmp_path / "other" / "chat.db", "check")
    kept = {content for _, content in contents(tmp_path / "other" / "chat.db")}
    assert set(known) <= kept


def test_the_copy_is_one_snapshot_though_messages_are_stored_in_each_pause(tmp_path: Path) -> None:
    path, copy = tmp_path / "chat.db", tmp_path / "copy.db"
    with opened(path) as connection:
        for number in range(300):
            say(connection, f"{number} " * 2000)
        before = contents(path)
        seen = []

        def progress(done: int, total: int) -> None:
            seen.append((done, total))
            say(connection, "meanwhile")

        backup.backup(path, copy, progress=progress)
    assert len(seen) > 2
    assert seen[-1][0] == seen[-1][1]
    assert contents(copy) == before


def test_a_copy_replaces_another_only_by_force(tmp_path: Path) -> None:
    path, copy = tmp_path / "chat.db", tmp_path / "copy.db"
    with opened(path) as connection:
        fill(connection)
    copy.write_text("precious")
    result = run(path, "backup", str(copy))
    assert result.exit_code == 2
    assert "--force" in result.output
    assert copy.read_text() == "precious"
    assert run(path, "backup", str(copy), "--force").exit_code == 0
    assert contents(copy) == contents(path)


def test_json_names_the_files_and_their_size(tmp_path: Path) -> None:
    path, copy, other = tmp_path / "chat.db", tmp_path / "copy.db", tmp_path / "other.db"
    with opened(path) as connection:
        fill(connection)
    made = json.loads(run(path, "backup", str(copy), "--json").output)
    assert made == {"file": str(copy), "bytes": copy.stat().st_size}
    restored = json.loads(run(other, "restore", str(copy), "--json").output)
    assert restored == {"database": str(other), "file": str(copy), "bytes": other.stat().st_size}


def test_a_copy_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        fill(connection)

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "copies").mkdir()
    with pytest.raises(KeyboardInterrupt):
        backup.backup(path, tmp_path / "copies" / "copy.db", progress=stop)
    assert list((tmp_path / "copies").iterdir()) == []


def test_restore_puts_a_copy_in_the_place_of_a_database_by_force_only(tmp_path: Path) -> None:
    path, copy = tmp_path / "chat.db", tmp_path / "copy.db"
    with opened(path) as connection:
        say(connection, "first")
        backup.backup(path, copy, progress=quiet)
        then = contents(path)
        say(connection, "second")
    assert run(path, "restore", str(copy)).exit_code == 2
    assert len(contents(path)) == 4
    assert run(path, "restore", str(copy), "--force").exit_code == 0
    assert contents(path) == then
    assert run(path, "check").exit_code == 0


def test_restore_refuses_while_a_server_uses_the_database(tmp_path: Path) -> None:
    path, copy = tmp_path / "chat.db", tmp_path / "copy.db"
    with opened(path) as connection:
        say(connection, "first")
    backup.backup(path, copy, progress=quiet)
    spill = Spill(spill_path(path, "living"), reserve_bytes=0)
    try:
        with pytest.raises(ConfigurationError, match="a server uses"):
            backup.restore(copy, path, progress=quiet, overwrites=True)
    finally:
        spill.close()


@pytest.mark.parametrize("kind", ("text", "foreign", "newer", "damaged", "missing"))
def test_restore_refuses_what_is_no_sound_copy(tmp_path: Path, kind: str) -> None:
    path, copy = tmp_path / "chat.db", tmp_path / "copy.db"
    with opened(copy) as connection:
        for number in range(100):
            say(connection, f"{number} " * 500)
        if kind == "newer":
            connection.execute("PRAGMA user_version = 9999")
        if kind == "foreign":
            connection.execute("PRAGMA application_id = 1")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    if kind == "text":
        copy.write_text("not a database " * 1000)
    elif kind == "damaged":
        content = bytearray(copy.read_bytes())
        content[30 * 4096 : 50 * 4096] = b"\xff" * (20 * 4096)
        copy.write_bytes(content)
    elif kind == "missing":
        copy.unlink()
    result = run(path, "restore", str(copy))
    assert result.exit_code == 2
    assert str(copy) in result.output
    assert not path.exists()
    assert [each.name for each in tmp_path.glob(".*")] == []


def test_an_empty_older_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    path, copy = tmp_path / "chat.db", tmp_path / "copy.db"
    with opened(copy) as connection:
        newest = connection.execute("PRAGMA user_version").fetchone()[0]
        for name, kind in connection.execute("SELECT name, type FROM sqlite_schema").fetchall():
            if not name.startswith("sqlite_"):
                connection.execute("PRAGMA foreign_keys = OFF")
                connection.execute(f"DROP {kind} IF EXISTS {name}")
        connection.execute("PRAGMA user_version = 0")
    backup.restore(copy, path, progress=quiet)
    with closing(connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == newest


def test_scheduled_copies_are_kept_in_number(tmp_path: Path) -> None:
    path, folder = tmp_path / "chat.db", tmp_path / "backups"
    with opened(path) as connection:
        fill(connection)
    made = [backup.back_up_into(folder, path, keep=2, progress=quiet) for _ in range(4)]
    assert backup.copies_in(folder) == made[-2:]
    assert contents(made[-1]) == contents(path)


def test_copies_made_while_the_clock_was_ahead_go_first_and_the_new_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "chat.db", tmp_path / "backups"
    with opened(path) as connection:
        fill(connection)
    with monkeypatch.context() as ahead:
        ahead.setattr(backup, "timestamp", lambda: "2099-01-01T00:00:00.000Z")
        early = backup.back_up_into(folder, path, keep=2, progress=quiet)
    made = [backup.back_up_into(folder, path, keep=2, progress=quiet) for _ in range(2)]
    assert backup.copies_in(folder) == made
    assert not early.exists()
    alone = backup.back_up_into(folder, path, keep=1, progress=quiet)
    assert backup.copies_in(folder) == [alone]


@pytest.mark.parametrize("how", ("itself", "link", "symlink", "wal", "search", "served", "folder", "leased"))
def test_a_copy_takes_no_file_s_place_that_a_database_lives_in(tmp_path: Path, how: str) -> None:
    path, other = tmp_path / "chat.db", tmp_path / "other.db"
    for each in (path, other):
        with opened(each) as connection:
            fill(connection)
    target = {"itself": path, "wal": tmp_path / "chat.db-wal", "search": tmp_path / "chat.db-search"}.get(how, other)
    with closing(connect(path)), ExitStack() as stack:
        if how == "link":
            target = tmp_path / "link.db"
            target.hardlink_to(path)
        elif how == "symlink":
            target = tmp_path / "link.db"
            target.symlink_to(path)
        elif how == "folder":
            target = tmp_path / "nowhere" / "b.db"
        elif how == "served":
            stack.callback(Spill(spill_path(other, "worker"), reserve_bytes=0).close)
        elif how == "leased":
            lease = Lease(jobs_lock_path(other))
            assert lease.is_ours()
            stack.callback(lease.release)
        before = {each.name: each.stat().st_ino for each in tmp_path.iterdir()}
        result = run(path, "backup", str(target), "--force")
        assert result.exit_code == 2
        assert len(result.output.strip().splitlines()) == 1
        assert {each.name: each.stat().st_ino for each in tmp_path.iterdir()} == before
    assert contents(path)


@pytest.mark.parametrize(
    "harm",
    (
        "CREATE TRIGGER t AFTER INSERT ON messages BEGIN UPDATE api_keys SET is_admin = 1; END",
        "CREATE VIEW v AS SELECT * FROM api_keys",
        "DROP TABLE api_keys",
        "CREATE TABLE more (a)",
    ),
)
def test_restore_and_check_name_what_is_foreign_in_a_file(tmp_path: Path, harm: str) -> None:
    path, evil = tmp_path / "chat.db", tmp_path / "evil.db"
    with opened(evil) as connection:
        fill(connection)
        connection.execute(harm)
    result = run(path, "restore", str(evil))
    assert result.exit_code == 2
    assert "tables are not those" in result.output
    assert not path.exists()
    checked = run(evil, "check")
    assert checked.exit_code == 1
    assert "tables are not those" in checked.output
