"""Each background job stands alone: whatever one comes upon, it goes on later, and the others go on now."""

import asyncio
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

from proxy.app import open_services
from proxy.errors import UnavailableError
from proxy.maintenance import background_jobs, indexing, job
from proxy.maintenance.background_jobs import Upkeep
from proxy.maintenance.job import Job, Lease, Stop
from proxy.recording.write_queue import QueueFullError
from proxy.search.deadline import Deadline
from proxy.search.index import Index
from proxy.search.query import Query, search
from proxy.settings import ConfigurationError, Settings
from proxy.storage import search_file
from tests.serving import settings_for
from tests.stored import opened, say

JOBS = ("forget-deletions", "search-index", "backup", "retention")


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(job, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(background_jobs, "_PASS_SECONDS", 0.01)
    monkeypatch.setattr(background_jobs, "_HOUR", 0.01)
    return settings_for(tmp_path, backup_every_seconds=3600.0, retention_days=30)


async def eventually(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_so():
            await asyncio.sleep(0.005)


@pytest.fixture
async def upkeep(configured: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Upkeep]:
    """The jobs of an open server, not begun."""
    made: list[Upkeep] = []
    with monkeypatch.context() as patched:
        patched.setattr(Upkeep, "start", lambda self: made.append(self))
        services = open_services(configured)
        await services.__aenter__()
    yield made[0]
    await services.__aexit__(None, None, None)


async def test_these_are_all_the_jobs_there_are(upkeep: Upkeep) -> None:
    assert sorted(each.name for each in upkeep.jobs) == sorted(JOBS)


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize(
    "raised",
    (
        QueueFullError(),
        UnavailableError(),
        sqlite3.OperationalError("database is locked"),
        sqlite3.DatabaseError("database disk image is malformed"),
        OSError(28, "No space left on device"),
        ConfigurationError("cannot write"),
        TimeoutError(),
        RuntimeError("nobody thought of this"),
        MemoryError(),
    ),
    ids=lambda exc: type(exc).__name__,
)
async def test_a_job_survives_what_it_raises_and_no_other_notices(upkeep: Upkeep, name: str, raised: Exception) -> None:
    done: Counter[str] = Counter()

    def counting(each: Job, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            done[each.name] += 1
            if each.name == name and done[name] <= 3:
                raise raised
            work()

        return run

    for each in upkeep.jobs:
        each.work = counting(each, each.work)
    upkeep.start()
    await eventually(lambda: all(done[each] > 6 for each in JOBS))
    assert all(each.is_running for each in upkeep.jobs)
    await upkeep.stop()
    assert not any(each.is_running for each in upkeep.jobs)


async def test_a_job_that_hangs_keeps_no_other_from_its_work(
    upkeep: Upkeep, configured: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background_jobs, "_LAST_STEP_SECONDS", 0.05)
    event = threading.Event()
    hanging = next(each for each in upkeep.jobs if each.name == "backup")
    hanging.work = lambda: bool(event.wait())  # type: ignore[assignment]
    with opened(configured.database_path) as connection:
        say(connection, "find me")
    upkeep.start()
    await eventually(lambda: indexed(configured.database_path) == 2)
    await upkeep.stop()
    assert "backup" in caplog.text
    event.set()
    await eventually(lambda: not hanging.is_running)


def indexed(path: Path) -> int:
    try:
        with closing(sqlite3.connect(search_file.index_path(path))) as index:
            return int(index.execute("SELECT COALESCE(SUM(documents), 0) FROM segments").fetchone()[0])
    except sqlite3.Error:
        return 0


def test_of_all_workers_one_has_the_jobs_until_it_is_gone(tmp_path: Path) -> None:
    one, two = Lease(tmp_path / "lock"), Lease(tmp_path / "lock")
    assert one.is_ours()
    assert one.is_ours()
    assert not two.is_ours()
    one.release()
    assert two.is_ours()
    two.release()
    two.release()


@pytest.mark.parametrize("raises", ("step", "clean", "backlog"))
def test_the_index_is_left_to_others_whatever_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raises: str
) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        say(connection, "find me")

    def fail(_: Index) -> int:
        raise OSError(5, "Input/output error")

    work = indexing.Indexing(path, is_busy=lambda: True, stop=Stop())
    with monkeypatch.context() as patched:
        patched.setattr(Index, raises, fail)
        patched.setattr(indexing, "_BACKLOG", -1)
        with pytest.raises(OSError, match="Input"):
            work.work()
    Index(path).close()
    work.work()
    work.close()
    Index(path).close()


def test_a_damaged_index_is_made_anew_once_and_then_the_database_is_blamed(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        say(connection, "find me")
    work = indexing.Indexing(path, is_busy=lambda: False, stop=Stop())
    work.work()
    damage(path)
    work.work()
    assert len(search(path, Query(text="find"), limit=9, deadline=Deadline(60))[0]) == 2
    work.work()
    assert indexed(path) == 4
    damage(path)
    with pytest.raises(sqlite3.DatabaseError):
        work.work()
    work.close()


def damage(path: Path) -> None:
    with closing(sqlite3.connect(search_file.index_path(path))) as index:
        index.execute("DELETE FROM grams_0_data")
        index.commit()
    with opened(path) as connection:
        say(connection, "find me too")
