"""The machine the benchmark runs on: what all its processes are given alike, and how to name it beside the figures."""

import contextlib
import os
import platform
import resource
import signal
import sys
import time
from pathlib import Path


def prepare(*, cores: int) -> None:
    """What all processes started from here inherit: the same few cores, as many files as the system allows.

    A SIGTERM becomes an exception from now on, so that what was started is stopped and its directories removed.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def describe() -> dict[str, str]:
    """What to say of this machine beside the figures."""
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


def line(machine: dict[str, str]) -> str:
    """The same in one line."""
    return ", ".join(f"{key}: {value}" for key, value in machine.items())
