"""Leaving: what a signal does to a real server process and to what it streams."""

import asyncio
import os
import signal
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash.rounds import worker_pids
from tests.fake_upstream import FakeUpstream, until
from tests.recording.test_recorder import CHAT, HELLO, WORLD, asking, eventually, replies
from tests.serving import ServerProcess, server_process

WORKERS = pytest.mark.parametrize("workers", (1, 2))


def left_files(folder: Path) -> list[str]:
    """Write-ahead logs and spill files that are not empty."""
    left = [*folder.glob("stellarchat.db-wal"), *folder.glob("stellarchat.db-spill-*")]
    return [path.name for path in left if path.stat().st_size]


def refuses(server: ServerProcess) -> Callable[[], bool]:
    """Whether new connections are refused."""

    def check() -> bool:
        try:
            socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=1).close()
        except OSError:
            return True
        return False

    return check


@WORKERS
async def test_open_streams_end_within_the_grace_time(tmp_path: Path, upstream: FakeUpstream, workers: int) -> None:
    gate = asyncio.Event()
    upstream.on(CHAT, until(gate, HELLO, WORLD))
    with server_process(tmp_path, upstream.url, "--workers", str(workers)) as server:
        async with asking(server.url) as caller:
            await caller.read_until(b"Hel")
            os.kill(server.pid, signal.SIGTERM)
            await eventually(refuses(server))
            gate.set()
            await caller.read_until(b"[DONE]\n\n")
        assert await asyncio.to_thread(server.wait) == 0
    assert replies(tmp_path) == [("Hello", "completed")]
    assert left_files(tmp_path) == []


@WORKERS
async def test_what_does_not_end_in_time_is_closed_and_saved(
    tmp_path: Path, upstream: FakeUpstream, workers: int
) -> None:
    upstream.on(CHAT, until(asyncio.Event(), HELLO, WORLD))
    environment = {"STELLARCHAT_DRAIN_GRACE_SECONDS": "1"}
    with server_process(tmp_path, upstream.url, "--workers", str(workers), **environment) as server:
        async with asking(server.url) as caller, asking(server.url, "other") as other:
            await caller.read_until(b"Hel")
            await other.read_until(b"Hel")
            assert await asyncio.to_thread(server.stop) == 0
            assert b"[DONE]" not in caller.received
    output = "\n".join(server.output)
    assert "Draining: 2 open replies get up to 1 s to end" in output
    assert output.count("the drain is over: 2 open replies were cut") == 1
    assert "Traceback" not in output
    assert "uvicorn" not in output
    assert replies(tmp_path) == [("Hel", "incomplete")] * 2
    assert left_files(tmp_path) == []


@WORKERS
async def test_a_second_signal_leaves_at_once_and_the_next_start_saves(
    tmp_path: Path, upstream: FakeUpstream, workers: int
) -> None:
    upstream.on(CHAT, until(asyncio.Event(), HELLO, WORLD))
    environment = {"STELLARCHAT_DRAIN_GRACE_SECONDS": "600", "STELLARCHAT_FLUSH_INTERVAL_SECONDS": "0.05"}
    with server_process(tmp_path, upstream.url, "--workers", str(workers), **environment) as server:
        async with asking(server.url) as caller:
            await caller.read_until(b"Hel")
            await eventually(lambda: fragments(tmp_path))
            os.kill(server.pid, signal.SIGTERM)
            await eventually(refuses(server))
            assert await asyncio.to_thread(server.stop) == 1
        server.start("--workers", str(workers))
        await eventually(lambda: replies(tmp_path) == [("Hel", "incomplete")])
        assert await asyncio.to_thread(server.stop) == 0


def fragments(folder: Path) -> list[Any]:
    connection = sqlite3.connect(folder / "stellarchat.db")
    try:
        return connection.execute("SELECT 1 FROM exchange_fragments").fetchall()
    finally:
        connection.close()


async def test_workers_do_not_outlive_a_killed_supervisor(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.on(CHAT, until(asyncio.Event(), HELLO, WORLD))
    environment = {"STELLARCHAT_DRAIN_GRACE_SECONDS": "1"}
    with server_process(tmp_path, upstream.url, "--workers", "2", **environment) as server:
        pids = worker_pids(server.pid)
        assert len(pids) == 2
        async with asking(server.url) as caller:
            await caller.read_until(b"Hel")
            os.kill(server.pid, signal.SIGKILL)
            await eventually(lambda: not any(map(is_running, pids)))
    assert replies(tmp_path) == [("Hel", "incomplete")]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
