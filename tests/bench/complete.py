"""`python -m tests.bench.complete KEY...`: what a relay that records has stored of what was sent through it.

whole    1,000 whole replies over 16 connections; then, stopped, the bytes on disk
streams  100 streams of 200 tokens, 50 at a time
left     20 streams whose caller leaves half-way
kill     50 callers of one stream after the other for 8 s; kill -9 of the relay; then it is started again
burst    32 callers of whole replies, as many as will go, for 3 s; the same

Every request has a number. Its caller keeps the text that it got and whether it saw the reply end (`acknowledged`).
This is compared with the store, which is read once it holds all that ended, or has not changed for some seconds. One
Markdown row is printed for each relay.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import os
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import accounting, callers, comparison, figures, machine, peers, phases, relays, stores
from tests.bench.callers import Got, Killed, Kind
from tests.bench.relays import Place, Relay, Running

_NOT_STORED = {relays.OUTPUT, "nginx.conf", "error.log", "config.yaml", "litellm.yaml"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is sent, and how long the store must not have changed to be read for good."""

    whole: int = 1000
    streams: int = 100
    left: int = 20
    streaming: int = 50
    streaming_s: float = 8.0
    bursting: int = 32
    burst_s: float = 3.0
    quiet_s: float = 8.0
    """LiteLLM sends its batches every five seconds."""
    settle_s: float = 2.5
    store_at_most_s: float = 120.0
    start_s: float = 90.0


@dataclass(frozen=True, slots=True)
class Findings:
    whole: comparison.Recorded
    whole_bytes: int
    streams: comparison.Recorded
    left: comparison.Cut
    killed: comparison.Lost
    running: comparison.Cut
    burst: comparison.Lost
    errors: dict[str, int]

    def cells(self) -> list[str]:
        sent = f"{self.whole} replies, {self.streams} streams"
        return [sent, f"{self.whole_bytes:,}", str(self.left), f"{self.killed}; {self.running}", str(self.burst)]


class Check:
    """One relay in a directory of its own, started and stopped and killed in turn."""

    def __init__(self, relay: Relay, place: Place, sizes: Sizes) -> None:
        self.relay, self.place, self.sizes = relay, place, sizes
        self.errors: Counter[str] = Counter()

    def run(self) -> Findings:
        with self._started() as relay:
            self._rest(relay)
        before = _bytes_on_disk(self.place.directory)
        with self._started() as relay:
            whole = self._whole(relay)
        whole_bytes = (_bytes_on_disk(self.place.directory) - before) // self.sizes.whole
        with self._started() as relay:
            streams, left = self._streams(relay), self._left(relay)
            streaming = self._kill_beside_streams(relay)
        with self._started() as relay:
            store = self._store()
            killed = comparison.lost(streaming, store)
            running = comparison.cut(streaming.got, store, streaming.kind)
            bursting = self._kill_in_a_burst(relay)
        with self._started():
            burst = comparison.lost(bursting, self._store())
        return Findings(whole, whole_bytes, streams, left, killed, running, burst, dict(self.errors))

    def _whole(self, relay: Running) -> comparison.Recorded:
        got = self._ask(relay, 1, self.sizes.whole, callers.WHOLE, at_once=16)
        found = comparison.recorded(got, self._store(got))
        self._rest(relay)
        return found

    def _streams(self, relay: Running) -> comparison.Recorded:
        kind = self._paced(tokens=200, rate=100)
        got = self._ask(relay, 1_000_001, self.sizes.streams, kind, at_once=50)
        return comparison.recorded(got, self._store(got))

    def _left(self, relay: Running) -> comparison.Cut:
        kind = dataclasses.replace(self._paced(tokens=100, rate=50), leaves_after=50)
        got = self._ask(relay, 2_000_001, self.sizes.left, kind, at_once=self.sizes.left)
        return comparison.cut(got, self._store(), kind)

    def _kill_beside_streams(self, relay: Running) -> Killed:
        kind = self._paced(tokens=150, rate=50)
        many, seconds = self.sizes.streaming, self.sizes.streaming_s
        return _kill_beside(relay, 3_000_001, kind, at_once=many, ramp_s=3.0, seconds=seconds)

    def _kill_in_a_burst(self, relay: Running) -> Killed:
        many, seconds = self.sizes.bursting, self.sizes.burst_s
        return _kill_beside(relay, 4_000_001, callers.WHOLE, at_once=many, ramp_s=0.2, seconds=seconds)

    def _started(self) -> contextlib.AbstractContextManager[Running]:
        place = dataclasses.replace(self.place, port=relays.free_port())
        return relays.started(self.relay, place, start_s=self.sizes.start_s)

    def _paced(self, *, tokens: int, rate: int) -> Kind:
        relays.set_pace(self.place.upstream_port, tokens=tokens, rate=rate)
        return Kind(stream=True, tokens=tokens, rate=rate)

    def _ask(self, relay: Running, first: int, count: int, kind: Kind, *, at_once: int) -> list[Got]:
        got = asyncio.run(callers.ask_many(relay, range(first, first + count), kind, at_once=at_once))
        self.errors.update(each.error for each in got if each.error)
        return got

    def _store(self, got: Sequence[Got] = ()) -> stores.Store:
        """The store once it holds all of these that ended, or has not changed for a while."""
        wanted = [each.number for each in got if each.ended]
        deadline = time.monotonic() + self.sizes.store_at_most_s
        store, changed = stores.read(self.relay.key, self.place), time.monotonic()
        while time.monotonic() < min(deadline, changed + self.sizes.quiet_s):
            if wanted and all(number in store and store[number].whole for number in wanted):
                break
            time.sleep(0.25)
            before, store = store, stores.read(self.relay.key, self.place)
            changed = changed if store == before else time.monotonic()
        return store

    def _rest(self, relay: Running) -> None:
        phases.settle(lambda: accounting.cpu_seconds(relay.pid or 0), quiet_s=self.sizes.settle_s, at_most_s=20)


def _kill_beside(relay: Running, first: int, kind: Kind, *, at_once: int, ramp_s: float, seconds: float) -> Killed:
    kill = functools.partial(_kill, relay)
    asking = callers.ask_until_killed(relay, first, kind, at_once=at_once, ramp_s=ramp_s, seconds=seconds, kill=kill)
    return asyncio.run(asking)


def _kill(relay: Running) -> None:
    """kill -9 of a relay's processes, the parent first, which would replace the others; not of LiteLLM's collector."""
    assert relay.pid is not None
    for pid in accounting.tree(relay.pid):
        with contextlib.suppress(OSError):
            if b"tests.bench.sink" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def _bytes_on_disk(directory: Path) -> int:
    """Of a relay that is stopped, with the logs that it left taken into their databases."""
    for path in directory.rglob("*.db"):
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    files = [path for path in directory.rglob("*") if path.is_file() and path.name not in _NOT_STORED]
    return sum(path.stat().st_size for path in files)


def check(relay: Relay, upstream_port: int, *, commands: str, work: Path | None, sizes: Sizes) -> Findings:
    with tempfile.TemporaryDirectory(prefix="complete-", dir=work, ignore_cleanup_errors=True) as name:
        return Check(relay, Place(0, Path(name), upstream_port, commands), sizes).run()


def main() -> None:
    options = _options()
    machine.prepare(cores=2)
    sizes = Sizes()
    print(_table_head(sizes), flush=True)
    commands = os.pathsep.join([*options.relay_bin, os.environ.get("PATH", "")])
    for relay in _relays(options.keys):
        with relays.upstream() as upstream:
            try:
                found = check(relay, upstream.port, commands=commands, work=options.dir, sizes=sizes)
            except (relays.NotInstalledError, relays.StartError, stores.StoreError) as exc:
                print(figures.markdown_row([relay.title, str(exc)]), flush=True)
                continue
        print(figures.markdown_row([relay.title, *found.cells()]), flush=True)
        for text, times in found.errors.items():
            print(f"{relay.title}: {times} × {text}", file=sys.stderr, flush=True)


def _table_head(sizes: Sizes) -> str:
    head = [cell.format(streams=sizes.streaming) for cell in comparison.HEAD]
    return figures.as_markdown(head, [])


def _relays(keys: Sequence[str]) -> Iterator[Relay]:
    by_key = {relay.key: relay for relay in (*relays.RELAYS, *peers.RELAYS)}
    return (by_key[key] for key in keys)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.complete",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("keys", nargs="+", metavar="KEY", choices=stores.READERS, help=", ".join(stores.READERS))
    parser.add_argument("--relay-bin", action="append", default=[], help="look for the relays' commands here first")
    parser.add_argument("--dir", type=Path, help="where the stores go while it runs (default: the system's place)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
