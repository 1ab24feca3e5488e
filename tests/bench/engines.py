"""`python -m tests.bench.engines`: what storing a chat costs on SQLite and on PostgreSQL, side by side in one run.

Commits of some chats each, straight through storage: new chats, and second turns of them. Processor time of the client
is that of this process; the server's is that of the connection's backend. The figures are medians over the rounds.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from proxy.ids import uuid7
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.wire.chat_reply import Completion
from tests.bench.distant import distant
from tests.chats import body_of, exchange_of, said, store_all, user
from tests.engines import connected
from tests.postgresql import CountingConnection, database_url

_TICKS = os.sysconf("SC_CLK_TCK")
_TEXT = "What is the capital of the country that lies to the east of the one I was born in? " * 8


class Figures(NamedTuple):
    """Of one chat, but for the trips, which are a commit's."""

    client_us: float
    server_us: float
    trips: float
    chats_per_second: float


@contextmanager
def engine(name: str, folder: Path, network_ms: float = 0.0) -> Iterator[Any]:
    """A connection to a new database."""
    if name == "sqlite":
        with closing(connected(folder / "chat.db")) as connection:
            yield connection
        return
    with database_url() as url, _from_afar(url, network_ms) as seen, closing(connected(seen)) as made:
        yield CountingConnection(made.raw)


@contextmanager
def _from_afar(url: str, network_ms: float) -> Iterator[str]:
    """The URL of a server on this machine that is so far away."""
    port = urlsplit(url).port
    if not network_ms or port is None:
        yield url
        return
    with distant(port, network_ms) as other:
        yield url.replace(f":{port}/", f":{other}/")


def measure(connection: Any, commits: int, chats_together: int = 16) -> tuple[Figures, Figures]:
    """New chats, and their second turns."""
    texts = [[f"{_TEXT}{uuid7()}" for _ in range(chats_together)] for _ in range(commits)]
    new = [[exchange_of([user(text)], SessionRef(uuid7(), "new")) for text in some] for some in texts]
    continued = [
        [
            exchange_of([user(text), said(_TEXT), user("and?")], SessionRef(chat.session.session_id, "stitched"))
            for text, chat in zip(some, chats, strict=True)
        ]
        for some, chats in zip(texts, new, strict=True)
    ]
    return _timed(connection, new), _timed(connection, continued)


def _timed(connection: Any, commits: Sequence[Sequence[Exchange]]) -> Figures:
    chats = sum(map(len, commits))
    trips, server, client, started = _trips(connection), _server(connection), time.process_time(), time.monotonic()
    for some in commits:
        body = body_of(said(_TEXT))
        replies = [Completion.from_body(body) for _ in some]
        outcomes = [Outcome(status="completed", http_status=200, reply=reply) for reply in replies]
        store_all(connection, list(zip(some, outcomes, strict=True)))
    return Figures(
        1e6 * (time.process_time() - client) / chats,
        1e6 * (_server(connection) - server) / chats,
        (_trips(connection) - trips) / len(commits),
        chats / (time.monotonic() - started),
    )


def _trips(connection: Any) -> int:
    return connection.trips if isinstance(connection, CountingConnection) else 0


def _server(connection: Any) -> float:
    """Seconds of processor time of the connection's backend."""
    if not isinstance(connection, CountingConnection):
        return 0.0
    fields = Path(f"/proc/{connection.raw.info.backend_pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network-ms", type=float, default=0.0, help="how far away the server is")
    parser.add_argument("--chats", type=int, default=16, help="in a commit")
    given = parser.parse_args()
    found: dict[tuple[str, str], list[Figures]] = {}
    for _ in range(given.rounds):
        for name in ("sqlite", "postgresql"):
            with tempfile.TemporaryDirectory() as folder, engine(name, Path(folder), given.network_ms) as connection:
                for kind, figures in zip(
                    ("new", "continued"), measure(connection, given.commits, given.chats), strict=True
                ):
                    found.setdefault((name, kind), []).append(figures)
    for (name, kind), rounds in found.items():
        middle = Figures(*map(statistics.median, zip(*rounds, strict=True)))
        print(
            f"{name:<11}{kind:<10} client {middle.client_us:6.0f} us a chat · server {middle.server_us:6.0f} us · "
            f"{middle.trips:5.1f} trips a commit · {middle.chats_per_second:6.0f} chats/s"
        )


if __name__ == "__main__":
    main()
