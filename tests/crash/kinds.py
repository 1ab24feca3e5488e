"""The kinds of trouble that a server can be put into, by name, and the environment that each needs."""

from collections.abc import Callable
from pathlib import Path

from tests.crash.ledger import Chat
from tests.crash.rounds import Trial
from tests.crash.trouble import (
    Trouble,
    built,
    clock_jumps,
    files_gone,
    giant_neighbour,
    refused_rows,
    set_clock,
    stalled_disk,
)

KINDS = ("stall", "removed", "replaced", "refused", "giant", "clock")
WRITABLE = ("giant", "clock")  # in these the database can be written all the time


def environment(kind: str, folder: Path) -> dict[str, str] | None:
    """What the server is started with; None where this machine cannot do it."""
    if kind == "stall":
        return _with_library("stalled_disk", folder, STALL_WHILE=folder / "stalled")
    if kind == "clock":
        set_clock(folder / "clock", 0)
        return _with_library("jumping_clock", folder, CLOCK_OFFSET=folder / "clock")
    return {}


def _with_library(name: str, folder: Path, **variables: Path) -> dict[str, str] | None:
    library = built(name, folder)
    if library is None:
        return None
    return {"LD_PRELOAD": str(library), **{key: str(each) for key, each in variables.items()}}


def trouble(kind: str, trial: Trial) -> Trouble:
    """The trouble of this name."""
    trial.script.add(Chat("giant", is_streamed=False))
    trial.expects_not_ready = kind not in WRITABLE
    folder, database = trial.folder, trial.database
    makers: dict[str, Callable[[], Trouble]] = {
        "stall": lambda: stalled_disk(folder / "stalled"),
        "removed": lambda: files_gone(database, copied=False),
        "replaced": lambda: files_gone(database, copied=True),
        "refused": lambda: refused_rows(database),
        "giant": lambda: giant_neighbour(lambda: trial.port, messages=4_000),
        "clock": lambda: clock_jumps(folder / "clock", trial.dice),
    }
    return makers[kind]()
