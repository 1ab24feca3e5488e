"""All processes of a database order deletions and chats by one clock, which never goes back."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import ids
from proxy.storage import boot_clock, tombstones
from proxy.storage.sqlite_connection import SqliteConnection
from tests.stored import opened

AHEAD = 5 * 86_400.0


@pytest.fixture
def connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteConnection]:
    monkeypatch.setattr(ids, "_started_at", ids._started_at)  # put back at the end
    with opened(tmp_path / "a.db") as connection:
        yield connection


def test_processes_that_start_one_after_another_have_one_clock(
    connection: SqliteConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot_clock.adopt(connection)
    first = ids._started_at
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)  # the wall clock was set back meanwhile
    ids.start_clock_at(0.0)
    boot_clock.adopt(connection)
    assert ids._started_at == first


@pytest.mark.parametrize("is_restarted", (False, True))
def test_what_comes_after_a_deletion_is_later_though_the_wall_clock_was_ahead(
    connection: SqliteConnection, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + AHEAD)
    boot_clock.adopt(connection)
    deleted_at = ids.moment()
    with connection.transaction():
        tombstones.add_tombstone(connection, "user", "ann", now=deleted_at)
    monkeypatch.setattr(time, "time", lambda: now)
    if is_restarted:
        monkeypatch.setattr(boot_clock, "_boot_id", lambda: "the next start of the machine")
    boot_clock.adopt(connection)
    assert ids.moment() > deleted_at or not is_restarted
    time.sleep(0.002)
    asked_at = ids.moment()
    assert not tombstones.was_deleted(connection, user_id="ann", session_id="s", asked_at=asked_at)
    assert tombstones.was_deleted(connection, user_id="ann", session_id="s", asked_at=deleted_at)
