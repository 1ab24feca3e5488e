"""Long commands show how far they are: to a person at a terminal, and to nobody else."""

import os
import pty
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from proxy.storage import exchange_store
from proxy.storage.write_batch import write_batch
from tests.serving import REPOSITORY
from tests.stored import fill, opened

COMMANDS = (
    ("backup", "copy.db"),
    ("restore", "--force", "saved.db"),
    ("export", "out.jsonl"),
    ("export", "--format", "openai", "out.jsonl"),
    ("export", "--format", "markdown", "out.md"),
    ("import", "--yes", "saved.jsonl"),
    ("prune", "--yes", "--older-than", "0h"),
    ("check",),
)


def run(folder: Path, *arguments: str, stderr: int) -> str:
    """The command's standard output."""
    environment = {**os.environ, "DATABASE_URL": f"sqlite:///{folder / 'chat.db'}", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "proxy", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True, timeout=60
    )
    return done.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database, its export and its backup."""
    folder = tmp_path_factory.mktemp("saved")
    with opened(folder / "chat.db") as connection:
        fill(connection)
        with write_batch(connection) as rows:
            exchange_store.recover(rows, "gone")
    run(folder, "export", "saved.jsonl", stderr=subprocess.DEVNULL)
    run(folder, "backup", "saved.db", stderr=subprocess.DEVNULL)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "folder")


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_bar_is_drawn_on_a_terminal(folder: Path, arguments: tuple[str, ...]) -> None:
    reader, terminal = pty.openpty()
    try:
        output = run(folder, *arguments, stderr=terminal)
    finally:
        os.close(terminal)
    drawn = b""
    with open(reader, "rb", buffering=0) as file, suppress(OSError):  # the end of a terminal is an error
        while data := file.read(4096):
            drawn += data
    assert arguments[0].encode() in drawn
    assert b"100%" in drawn
    assert "%" not in output


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_nothing_is_drawn_in_a_pipe(folder: Path, arguments: tuple[str, ...]) -> None:
    file = folder / "stderr"
    with file.open("wb") as stderr:
        run(folder, *arguments, stderr=stderr.fileno())
    assert file.read_bytes() == b""
