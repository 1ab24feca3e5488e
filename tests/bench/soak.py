"""`python -m tests.bench.soak`: does StellarChat stay the size it is? Memory and open files over many requests."""

import argparse
import os
import sys
import time
from pathlib import Path

from tests.bench import accounting, figures, machine, phases, relays
from tests.bench.client import Load

_STREAM_TOKENS = 20
_STREAM_RATE = 200


def main() -> None:
    options = _options()
    machine.prepare(cores=2)
    key = options.relay
    relay = next(relay for relay in relays.RELAYS if relay.key == key)
    print(f"{relay.title}: {options.requests:,} requests in {options.slices} slices, one in ten a stream", flush=True)
    print(f"{'requests':>10}  {'seconds':>8}  {'RSS MB':>8}  {'grown KB':>9}  {'files':>6}  errors", flush=True)
    with (
        relays.upstream() as upstream,
        relays.running(
            relay, upstream_port=upstream.port, commands=os.environ.get("PATH", ""), work=options.dir, start_s=90
        ) as running,
    ):
        relays.set_pace(upstream.port, tokens=_STREAM_TOKENS, rate=_STREAM_RATE)
        failed = _soak(running, requests=options.requests, slices=options.slices)
    sys.exit(failed)


def _soak(running: relays.Running, *, requests: int, slices: int) -> bool:
    """Run the slices, print a line after each and the slope at the end. Whether any request failed."""
    assert running.pid is not None
    began = time.monotonic()
    done: list[float] = []
    sizes: list[float] = []
    failed = False
    for number in range(slices):
        errors = _slice(running.port, requests // slices, label=number)
        failed = failed or bool(errors)
        size = accounting.resident_bytes(running.pid)
        done.append((number + 1) * (requests // slices))
        sizes.append(size / 1e3)
        files = accounting.open_files(running.pid)
        grown = sizes[-1] - sizes[0]
        elapsed = time.monotonic() - began
        print(
            f"{done[-1]:>10,.0f}  {elapsed:>8.0f}  {size / 1e6:>8.1f}  {grown:>9,.0f}  {files:>6}  {errors or ''}",
            flush=True,
        )
    # The first half fills caches and pools; what grows in the second goes on growing.
    half = len(done) // 2
    slope = figures.slope(done[half:], sizes[half:])
    print(f"growth over the second half: {slope * 1e3:.1f} bytes a request")
    return failed


def _slice(port: int, requests: int, *, label: int) -> dict[str, int]:
    """Nine whole replies for each stream. What went wrong, by its text."""
    streams = max(1, requests // 10)
    loads = (
        Load(port=port, stream=False, connections=32, requests=requests - streams, seconds=600, deadline_s=600),
        Load(
            port=port,
            stream=True,
            connections=64,
            requests=streams,
            seconds=600,
            deadline_s=600,
            tokens=_STREAM_TOKENS,
            rate=_STREAM_RATE,
        ),
    )
    errors: dict[str, int] = {}
    for position, load in enumerate(loads):
        outcome = phases.perform(load, label=2 * label + position)
        errors |= outcome.errors
        if outcome.unfinished:
            errors["unfinished"] = outcome.unfinished
    return errors


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    keys = [relay.key for relay in relays.RELAYS if relay.launch is not None]
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--relay", choices=keys, default="strict")
    parser.add_argument("--dir", type=Path, help="where the database goes while it runs (default: the system's place)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
