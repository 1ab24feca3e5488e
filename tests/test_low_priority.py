"""Threads that streams must not wait for have a lower priority than the event loop."""

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from proxy import low_priority
from proxy.search.turns import Turns
from proxy.storage.database import Database
from proxy.web.visits import Pages
from tests.stored import opened

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own only on Linux")


def nice(*_: Any) -> int:
    """The calling thread's."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


async def test_searches_pages_and_reads_of_history_are_lowered_and_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path / "a.db"):
        pass
    searches, database = Turns(), Database(tmp_path / "a.db")
    await database.open()
    try:
        lowered = [await searches.run("ann", nice), await Pages().work(nice), await database.read(nice)]
        others = [await database.look_up(nice), await database.write(nice), await asyncio.to_thread(nice)]
    finally:
        searches.close()
        await database.close()
    assert min(lowered) > nice() or nice() == 19  # there is no lower one
    assert others == [nice()] * 3


def test_a_system_that_refuses_it_ends_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    low_priority.lower_priority()
