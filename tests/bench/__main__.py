"""`python -m tests.bench`: StellarChat beside other relays, one process each, on the same cores, in one run."""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path

from tests.bench import figures, phases, relays


def main() -> None:
    options = _options()
    _prepare(options.cores)
    chosen = _chosen(options.only)
    plan = phases.QUICK if options.quick else phases.Plan()
    machine = _machine()
    print(_line(machine), file=sys.stderr)
    rounds: list[dict[str, figures.Measured]] = []
    with contextlib.suppress(KeyboardInterrupt), relays.upstream() as upstream:
        for number in range(options.rounds):
            rounds.append({})
            for relay in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
                _say(f"round {number + 1} of {options.rounds}: {relay.title}")
                rounds[-1][relay.key] = _measure(relay, upstream, plan, options)
    titles = {relay.key: relay.title for relay in chosen}
    if options.json is not None:
        options.json.write_text(json.dumps(_whole(machine, plan, rounds, titles), indent=1) + "\n")
    print(figures.report(rounds, titles, markdown=options.markdown) + "\n" + _line(machine))


def _measure(
    relay: relays.Relay, upstream: relays.Running, plan: phases.Plan, options: argparse.Namespace
) -> figures.Measured:
    commands = os.pathsep.join([*options.relay_bin, os.environ.get("PATH", "")])
    try:
        with relays.running(
            relay, upstream_port=upstream.port, commands=commands, work=options.dir, start_s=options.start_seconds
        ) as running:
            return phases.Round(plan, running, upstream, label=0).measure()
    except (relays.NotInstalledError, relays.StartError) as exc:
        return figures.Measured(errors={"start": str(exc)})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short phases and one round: minutes less, more noise")
    parser.add_argument("--rounds", type=int, help="default 3; with --quick 1")
    parser.add_argument(
        "--only", default="", help="rows, with commas: " + ",".join(relay.key for relay in relays.RELAYS)
    )
    parser.add_argument("--relay-bin", action="append", default=[], help="look for the relays' commands here first")
    parser.add_argument("--dir", type=Path, help="where the databases go while it runs (default: the system's place)")
    parser.add_argument("--cores", type=int, default=2, help="how many cores all share (default 2)")
    parser.add_argument("--start-seconds", type=float, default=90, help="how long a relay may take to start")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def _chosen(only: str) -> list[relays.Relay]:
    """The rows asked for, and direct, from which the others are measured."""
    wanted = {key.strip() for key in only.split(",") if key.strip()}
    unknown = wanted - {relay.key for relay in relays.RELAYS}
    if unknown:
        raise SystemExit(f"--only: no such row: {', '.join(sorted(unknown))}")
    return [relay for relay in relays.RELAYS if not wanted or relay.key in wanted | {figures.DIRECT}]


def _prepare(cores: int) -> None:
    """What all the processes inherit: the same few cores, and as many files as the system allows."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _machine() -> dict[str, str]:
    model = "unknown processor"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "processor": model,
        "cores used": str(cores),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "date": time.strftime("%Y-%m-%d"),
    }


def _line(machine: dict[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in machine.items())


def _whole(
    machine: dict[str, str], plan: phases.Plan, rounds: list[dict[str, figures.Measured]], titles: dict[str, str]
) -> dict[str, object]:
    columns = [column for table in figures.TABLES.values() for column in table]
    cells = {key: {c.key: figures.summarize(rounds, c, key) for c in columns} for key in titles}
    summary = {
        key: {name: dataclasses.asdict(cell) for name, cell in row.items() if cell} for key, row in cells.items()
    }
    measured = [{key: dataclasses.asdict(one) for key, one in by_relay.items()} for by_relay in rounds]
    return {"machine": machine, "plan": dataclasses.asdict(plan), "summary": summary, "rounds": measured}


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
