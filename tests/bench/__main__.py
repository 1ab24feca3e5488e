"""`python -m tests.bench`: StellarChat beside other relays, one process each, on the same cores, in one run.

An upstream that costs next to nothing streams paced events, each written on its own. Every relay is started afresh in
every round, alone, in an order that rotates, and gets the same loads:

hold   1,000 streams of 20 tokens/s at once: resident memory over the idle process, and how late the last token comes
chunk  200 streams of 50 tokens/s: processor time of the relay's processes for each event, the requests' cost included
responses, messages    as `chunk`, on these endpoints: the same number of writes, with each dialect's events
first  1, 50, 200, 1,000 streams open at any time: time from the request to the first token, less the direct way's
json   whole replies over 32 connections, as many as will go: processor time of each, and how many a second

Each load finds the relay at rest, and processor time is counted until it is at rest again: what a relay puts off, such
as filling an index, is charged to the load that caused it, and so is what it takes at rest, up to 2 % of a core, in the
seconds it is looked at. `--json` says how much came after the load (`chunk_later_us`, `json_later_us`). Where a relay
does not come to rest in time, a line says so.

A relay that fails at a load, or falls behind, has an error in place of that figure and is started afresh for the next.
Connections are kept open and opened before the clock starts. What comes is checked to the last event. Figures are
medians over the rounds, with (smallest-largest) and x the ratio to nginx.

`--peers` compares with programs that record what they relay, each with its recording of content on; what they stored
of what was sent is found by `python -m tests.bench.complete`. Each has a virtual environment of its own, so there is a
`--relay-bin` for each.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path

from tests.bench import figures, machine, peers, phases, relays

ROWS = (*relays.RELAYS, *peers.RELAYS)


def main() -> None:
    options = _options()
    machine.prepare(cores=options.cores)
    chosen = _chosen(options.only, peers.TABLE if options.peers else [relay.key for relay in relays.RELAYS])
    plan = _plan(options)
    here = machine.describe()
    print(machine.line(here), file=sys.stderr)
    rounds: list[dict[str, figures.Measured]] = []
    with contextlib.suppress(KeyboardInterrupt), relays.upstream() as upstream:
        for number in range(options.rounds):
            rounds.append({})
            for relay in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
                _say(f"round {number + 1} of {options.rounds}: {relay.title}")
                rounds[-1][relay.key] = _measure(relay, upstream, plan, options)
    titles = {relay.key: relay.title for relay in chosen}
    if options.json is not None:
        options.json.write_text(json.dumps(_whole(here, plan, rounds, titles), indent=1) + "\n")
    tables, shown = (figures.PEERS, figures.show_median) if options.peers else (figures.TABLES, figures.show)
    print(
        figures.report(rounds, titles, markdown=options.markdown, tables=tables, shown=shown)
        + "\n"
        + machine.line(here)
    )


def _measure(
    relay: relays.Relay, upstream: relays.Running, plan: phases.Plan, options: argparse.Namespace
) -> figures.Measured:
    start = functools.partial(
        relays.running,
        relay,
        upstream_port=upstream.port,
        commands=os.pathsep.join([*options.relay_bin, os.environ.get("PATH", "")]),
        work=options.dir,
        start_s=options.start_seconds,
    )
    try:
        return phases.measure(plan, start, upstream, options.phases.split(",") if options.phases else ())
    except (relays.NotInstalledError, relays.StartError) as exc:
        return figures.Measured(errors={"start": str(exc)})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short phases and one round: minutes less, more noise")
    parser.add_argument(
        "--peers", action="store_true", help="the phases and the rows of the table beside programs that record"
    )
    parser.add_argument("--rounds", type=int, help="default 3; with --quick 1")
    parser.add_argument("--only", default="", help="rows, with commas: " + ",".join(relay.key for relay in ROWS))
    parser.add_argument("--phases", default="", help="loads, with commas: " + ",".join(phases.names(phases.Plan())))
    parser.add_argument("--relay-bin", action="append", default=[], help="look for the relays' commands here first")
    parser.add_argument("--dir", type=Path, help="where the databases go while it runs (default: the system's place)")
    parser.add_argument("--cores", type=int, default=2, help="how many cores all share (default 2)")
    parser.add_argument("--start-seconds", type=float, default=90, help="how long a relay may take to start")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def _plan(options: argparse.Namespace) -> phases.Plan:
    if options.peers:
        return phases.QUICK_PEERS if options.quick else phases.PEERS
    return phases.QUICK if options.quick else phases.Plan()


def _chosen(only: str, usual: Collection[str]) -> list[relays.Relay]:
    """The rows asked for, and direct, from which the others are measured."""
    wanted = {key.strip() for key in only.split(",") if key.strip()}
    unknown = wanted - {relay.key for relay in ROWS}
    if unknown:
        raise SystemExit(f"--only: no such row: {', '.join(sorted(unknown))}")
    return [relay for relay in ROWS if relay.key in (wanted or set(usual)) | {figures.DIRECT}]


def _whole(
    here: dict[str, str], plan: phases.Plan, rounds: list[dict[str, figures.Measured]], titles: dict[str, str]
) -> dict[str, object]:
    columns = [column for table in figures.TABLES.values() for column in table]
    cells = {key: {c.key: figures.summarize(rounds, c, key) for c in columns} for key in titles}
    summary = {
        key: {name: dataclasses.asdict(cell) for name, cell in row.items() if cell} for key, row in cells.items()
    }
    measured = [{key: dataclasses.asdict(one) for key, one in by_relay.items()} for by_relay in rounds]
    return {"machine": here, "plan": dataclasses.asdict(plan), "summary": summary, "rounds": measured}


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
