"""The crash test on PostgreSQL, short: `python -m tests.crash --database postgresql` runs it for long."""

from pathlib import Path

import pytest

pytest.importorskip("psycopg")

from tests.crash.postgresql import SharedTrial
from tests.fake_upstream import fake_upstream
from tests.postgresql import database_url, own_server


async def test_killed_proxies_and_servers_lose_and_double_nothing(tmp_path: Path) -> None:
    with own_server() as server, database_url(server.url) as url:
        async with fake_upstream() as upstream:
            trial = SharedTrial(
                server, tmp_path, upstream, url, seed=3, chats=8, proxies=2, behind_seconds=30.0, longest=40
            )
            try:
                await trial.start()
                await trial.kill_one()
                trial.kills = 4  # the next one hits the server
                await trial.kill_one()
                await trial.finish()
            finally:
                trial.kill()
    assert trial.verdict.is_good, trial.verdict.notes
    assert trial.verdict.acknowledged
