"""`python -m tests.bench.prune`: does a chat wait longer for its first token while old ones are deleted?"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench import accounting, figures, growth, machine, phases, relays
from tests.bench.client import Load

_TOKENS, _RATE = 50, 50
# A prune of a million lasts minutes: that Python starts is no part of what a chat meets.
_BEGUN_SECONDS = 3.0


def main() -> None:
    options = _options()
    machine.prepare(cores=2)
    with tempfile.TemporaryDirectory(prefix="prune-", dir=options.dir) as folder:
        path = Path(folder) / "x.db"
        growth.make(path, messages=options.messages)
        relay = relays.Relay(
            "strict", "StellarChat, strict", lambda place: relays.stellarchat(place, DATABASE_URL=f"sqlite:///{path}")
        )
        with (
            relays.upstream() as upstream,
            relays.running(
                relay,
                upstream_port=upstream.port,
                commands=os.environ.get("PATH", ""),
                work=options.dir,
                start_s=120,
            ) as running,
        ):
            relays.set_pace(upstream.port, tokens=_TOKENS, rate=_RATE)
            _compare(running.port, path, options)


def _compare(port: int, path: Path, options: argparse.Namespace) -> None:
    """Turns without and with a prune, so that what else the machine does meets both."""
    times: dict[str, list[float]] = {"without": [], "with": []}
    for turn in range(options.turns):
        times["without"] += _first_tokens(port, options, label=2 * turn)
        with _pruning(path) as process:
            times["with"] += _first_tokens(port, options, label=2 * turn + 1)
            if process.poll() is not None:
                raise SystemExit("the prune was over before the time was: ask for more --messages or fewer --seconds")
    print(f"first token, {options.streams} streams, ms   p50     p99   chats")
    for name, each in times.items():
        p50, p99 = (figures.quantile(each, q) for q in (0.5, 0.99))
        print(f"{name + ' a prune':<34} {p50:>6.1f} {p99:>7.1f} {len(each):>7,}")
    print(f"p99 with / without: {figures.quantile(times['with'], 0.99) / figures.quantile(times['without'], 0.99):.2f}")


def _first_tokens(port: int, options: argparse.Namespace, *, label: int) -> list[float]:
    load = Load(
        port=port,
        stream=True,
        connections=options.streams,
        tokens=_TOKENS,
        rate=_RATE,
        ramp_s=_TOKENS / _RATE,
        sample_after_s=_TOKENS / _RATE,
        seconds=options.seconds,
        deadline_s=options.seconds + 30,
    )
    outcome = phases.perform(load, label=label)
    if outcome.errors or outcome.unfinished:
        raise SystemExit(f"the chats failed: {outcome.errors or outcome.unfinished}")
    return outcome.first_token_ms


@contextmanager
def _pruning(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`stellarchat prune` at work beside the server; the next one goes on where it was ended."""
    argv = [sys.executable, "-m", "proxy", "prune", "--older-than", "1d", "--yes"]
    environment = {**os.environ, "DATABASE_URL": f"sqlite:///{path}"}
    process = subprocess.Popen(argv, cwd=relays.ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        time.sleep(_BEGUN_SECONDS)
        yield process
    finally:
        accounting.stop(process)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.prune", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000, help="how many there are to delete")
    parser.add_argument("--streams", type=int, default=50, help="chats that stream at any time")
    parser.add_argument("--seconds", type=float, default=15, help="how long a turn lasts")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where the database goes: a million messages take about 1 GB")
    return parser.parse_args()


if __name__ == "__main__":
    main()
