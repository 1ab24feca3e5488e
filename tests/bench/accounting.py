"""What `/proc` says about a process and its children: processor time, resident memory, open files."""

import os
import signal
import subprocess
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def tree(pid: int) -> list[int]:
    """The process and its living descendants."""
    pids = [pid]
    for parent in pids:
        try:
            threads = list(Path(f"/proc/{parent}/task").iterdir())
            children = [child for thread in threads for child in (thread / "children").read_text().split()]
        except OSError:  # it ended while we looked
            continue
        pids.extend(int(child) for child in children)
    return pids


def cpu_seconds(pid: int) -> float:
    """Processor time of the tree so far, with that of the children it has waited for."""
    ticks = 0
    for one in tree(pid):
        try:
            stat = Path(f"/proc/{one}/stat").read_text()
        except OSError:
            continue
        # The name, in brackets, may hold spaces: count from behind it. 11 to 14 are utime, stime, cutime, cstime.
        ticks += sum(int(field) for field in stat.rpartition(")")[2].split()[11:15])
    return ticks / _TICKS


def own_cpu_seconds() -> float:
    """Processor time of this process and of the children it has waited for."""
    return sum(os.times()[:4])


def machine_cpu_seconds() -> float:
    """Processor time that anyone on this machine has taken, and that the host took from it."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS  # idle, and idle while a disk works


def resident_bytes(pid: int) -> int:
    """Resident memory of the tree; a page that two processes share counts twice."""
    pages = 0
    for one in tree(pid):
        try:
            pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * _PAGE


def open_files(pid: int) -> int:
    """How many file descriptors the tree holds."""
    return sum(len(os.listdir(f"/proc/{one}/fd")) for one in tree(pid) if os.path.isdir(f"/proc/{one}/fd"))


def stop(process: subprocess.Popen[bytes], *, wait_s: float = 10.0) -> None:
    """End a process that we started and whatever it started: asked first, then killed."""
    pids = tree(process.pid)
    process.terminate()
    try:
        process.wait(wait_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(wait_s)
    deadline = time.monotonic() + wait_s
    # What the process started and left behind: it is nobody's now, so it is ended by the number it had.
    while any(_alive(pid) for pid in pids[1:]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in pids[1:]:
        if _alive(pid):
            os.kill(pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
