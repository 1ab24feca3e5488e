"""The connections of one process: a slow read is ended, and holds up no look-up."""

import asyncio
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from proxy.storage import database as database_module
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.database import Database
from proxy.storage.errors import StorageInterruptedError
from tests.stored import execute

ENDLESS = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT MAX(n) FROM n"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(tmp_path / "a.db")
    await opened.open()
    yield opened
    await opened.close()


def asks_for_ever(connection: Connection) -> None:
    while True:
        queries.keys.key_exists(connection)


@pytest.mark.parametrize("work", (partial(execute, statement=ENDLESS), asks_for_ever), ids=("one long", "many short"))
async def test_a_read_that_takes_too_long_is_ended(
    database: Database, monkeypatch: pytest.MonkeyPatch, work: "partial[None]"
) -> None:
    monkeypatch.setattr(database_module, "READ_SECONDS", 0.05)
    for _ in range(3):  # more than there are readers: each is good again
        with pytest.raises(StorageInterruptedError):
            await database.read(work)
    monkeypatch.setattr(database_module, "READ_SECONDS", 60.0)
    assert not await database.read(queries.keys.key_exists)


async def test_a_look_up_does_not_wait_for_reads(database: Database) -> None:
    is_over = threading.Event()
    reads = [asyncio.ensure_future(database.read(lambda _: is_over.wait(30))) for _ in range(4)]
    await asyncio.sleep(0)
    assert not await database.look_up(queries.keys.key_exists)
    assert not any(read.done() for read in reads)
    is_over.set()
    await asyncio.gather(*reads)
