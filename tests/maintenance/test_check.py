"""`stellarchat check`: what it finds and what it leaves alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from proxy.cli import cli
from proxy.recording.spill import Spill, spill_path
from proxy.storage import exchange_store
from proxy.storage.write_batch import write_batch
from tests.engines import environment_of, name_of, on_both_engines, on_sqlite_file
from tests.stored import fill, opened, problems_of, say

pytestmark = on_both_engines


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), env=environment_of(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        fill(connection)
        with write_batch(connection) as rows:
            exchange_store.recover(rows, "gone")
    return path


def test_a_database_with_everything_in_it_is_whole(path: Path) -> None:
    assert problems_of(path) == []
    result = run(path, "check")
    assert (result.exit_code, result.output) == (0, f"{name_of(path)}: no problems found\n")


@pytest.mark.parametrize(
    ("change", "kind"),
    (
        ("UPDATE users SET session_count = session_count + 1", "miscounted_users"),
        ("UPDATE sessions SET message_count = 99", "miscounted_sessions"),
        ("UPDATE sessions SET tokens = tokens + 1", "miscounted_sessions"),
        ("UPDATE sessions SET leaf_no = 9999 WHERE leaf_no IS NOT NULL", "miscounted_sessions"),
        ("UPDATE messages SET depth = 7", "misplaced_messages"),
        ("UPDATE exchanges SET user_no = 99", "misplaced_exchanges"),
        ("UPDATE exchanges SET leaf_no = 9999", "misplaced_exchanges"),
        ("INSERT INTO blobs VALUES ('x', 'y')", "stray_blobs"),
        (
            "INSERT INTO exchange_fragments (exchange_no, sequence, data) "
            "SELECT exchange_no, 9, '' FROM exchanges LIMIT 1",
            "stray_fragments",
        ),
        ("UPDATE exchanges SET status = 'in_progress', worker_id = 'dead'", "unfinished"),
    ),
)
def test_what_is_wrong_is_found(path: Path, change: str, kind: str) -> None:
    with opened(path) as connection:
        connection.execute(change)
    assert kind in _kinds(path)


@on_sqlite_file
@pytest.mark.parametrize(
    ("change", "kind"),
    (
        ("PRAGMA foreign_keys = OFF; UPDATE messages SET session_id = 'none'", "links"),
        ("PRAGMA user_version = 9999", "schema"),
        ("PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 3 WHERE name = 'blobs'", "file"),
    ),
)
def test_what_is_wrong_with_a_file_is_found(path: Path, change: str, kind: str) -> None:
    with opened(path) as connection:
        for statement in change.split(";"):
            connection.execute(statement)
    assert kind in _kinds(path)


def _kinds(path: Path) -> set[str]:
    result = run(path, "check", "--json")
    report: dict[str, Any] = json.loads(result.output)
    assert result.exit_code == 1
    return {problem["kind"] for problem in report["problems"]}


@on_sqlite_file
def test_what_a_living_process_streams_is_no_orphan(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        fill(connection)
        ended = "SELECT exchange_no, 0, x'' FROM exchanges WHERE status <> 'in_progress' LIMIT 1"
        connection.execute(f"INSERT INTO exchange_fragments (exchange_no, sequence, data) {ended}")
    assert [problem.kind for problem in problems_of(path)] == ["stray_fragments", "unfinished"]
    spill = Spill(spill_path(path, "gone"), reserve_bytes=0)
    try:
        assert problems_of(path) == []
    finally:
        spill.close()


@on_sqlite_file
def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        for number in range(200):
            say(connection, f"message {number} " * 20)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    content = bytearray(path.read_bytes())
    content[40 * 4096 : 60 * 4096] = b"\xff" * (20 * 4096)
    path.write_bytes(content)
    result = run(path, "check")
    assert result.exit_code == 1
    assert "the file is damaged" in result.output


@on_sqlite_file
def test_no_database_is_one_line(tmp_path: Path) -> None:
    result = run(tmp_path / "none.db", "check")
    assert result.exit_code == 2
    assert "there is no database" in result.output


@on_sqlite_file
@pytest.mark.parametrize("command", ("export", "stats", "check"))
def test_a_file_of_before_the_first_release_is_refused_in_words(path: Path, command: str) -> None:
    with opened(path) as connection:
        connection.execute("PRAGMA user_version = 3")
    result = run(path, command)
    assert result.exit_code != 0
    assert "export it with the StellarChat that wrote it" in result.output
