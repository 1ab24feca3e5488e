"""`python -m tests.bench.instructions`: instructions that the server takes for a chunk, a reply and a stored chat.

Times depend on what else the machine does; counts of instructions hardly do, so that they show a regression on a noisy
machine. The server runs in valgrind's callgrind, fifty times slower, and is counted between two points:

reply   a whole reply asked for on a connection kept open, one after the other
shared  the same on 16 connections at once, so that a commit stores many chats: the usual case of a busy server; how
        many depends on time, so count it on a machine that does nothing else
chunk   one event of a stream: the upstream sends it when the caller has the one before, so that none share a read
stored  what the row `strict` takes for a reply more than `nothing`, whose transactions are empty

The kernel's work is not counted, and waits are not either. What the server does by the clock, busy or not, is measured
first and subtracted.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tests.bench import relays, wire

_ROWS = ("off", "nothing", "strict")
_START_S = 300.0  # beside the tests, valgrind may take minutes to load the program
_IDLE_S = 5.0
_ANSWER_S = 60.0
_TOGETHER = 16  # connections
_SHORT, _LONG = 10, 110  # tokens of a stream: a chunk is the difference of two streams


class Counts(NamedTuple):
    """Instructions in the process of the server."""

    reply: float
    shared: float
    chunk: float


def main() -> None:
    options = _options()
    if not shutil.which("valgrind"):
        sys.exit("valgrind is not installed: apt install valgrind")
    counts = {key: measure(key, replies=options.replies, streams=options.streams) for key in options.only.split(",")}
    print(f"{'thousand instructions':<44}{'reply':>10}{'shared':>10}{'chunk':>10}")
    for key, each in counts.items():
        print(f"{_relay(key).title:<44}{each.reply / 1e3:>10.1f}{each.shared / 1e3:>10.1f}{each.chunk / 1e3:>10.2f}")
    if {"strict", "nothing"} <= counts.keys():
        reply, shared, _ = (a - b for a, b in zip(counts["strict"], counts["nothing"], strict=True))
        print(f"{'a stored chat':<44}{reply / 1e3:>10.1f}{shared / 1e3:>10.1f}")


def measure(key: str, *, replies: int, streams: int) -> Counts:
    with (
        _Upstream() as upstream,
        _counted(key, upstream.port) as counted,
        contextlib.closing(_Caller(counted.port, upstream)) as caller,
    ):
        for _ in range(10):  # caches fill, code is specialised
            caller.reply()
            caller.stream(_SHORT)
        counted.measure_idle()
        for _ in range(replies):
            caller.reply()
        reply = counted.since() / replies
        counted.let_rest()
        took = []
        for tokens in (_SHORT, _LONG):
            for _ in range(streams):
                caller.stream(tokens)
            took.append(counted.since())
        return Counts(reply, _shared(counted, upstream, replies), (took[1] - took[0]) / streams / (_LONG - _SHORT))


def _shared(counted: "_Counted", upstream: "_Upstream", replies: int) -> float:
    """Instructions for a reply where so many are asked for on several connections at once."""
    times = max(1, replies // _TOGETHER)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(_TOGETHER) as pool:
        callers = [stack.enter_context(contextlib.closing(_Caller(counted.port, upstream))) for _ in range(_TOGETHER)]

        def ask_all(count: int) -> None:
            for done in [pool.submit(_ask, caller, count) for caller in callers]:
                done.result()

        ask_all(1)
        counted.since()
        ask_all(times)
        return counted.since() / (times * _TOGETHER)


def _ask(caller: "_Caller", times: int) -> None:
    for _ in range(times):
        caller.reply()


def _relay(key: str) -> relays.Relay:
    return next(relay for relay in relays.RELAYS if relay.key == key)


class _Counted:
    """A server that runs in callgrind."""

    def __init__(self, pid: int, port: int, directory: Path) -> None:
        self.port = port
        self._pid = pid
        self._directory = directory
        self._dumps = 0
        self._idle_rate = 0.0  # instructions a second
        self._dumped_at = 0.0

    def measure_idle(self) -> None:
        """Counts what the idle server does: `since` subtracts it."""
        self._dump()
        time.sleep(_IDLE_S)
        self._idle_rate = self._dump() / _IDLE_S

    def let_rest(self) -> None:
        """Waits for what the server does later, such as filling the search index, and does not count it."""
        time.sleep(_IDLE_S)
        self._dump()

    def since(self) -> float:
        """Instructions since the last call, without those that the clock has caused."""
        began = self._dumped_at
        took = self._dump()
        return took - self._idle_rate * (self._dumped_at - began)

    def _dump(self) -> int:
        self._dumped_at = time.monotonic()
        self.control("--dump")
        self._dumps += 1
        # Each dump is a file of its own, with what came since the one before; a thread has no file of its own.
        dump = self._directory / f"callgrind.out.{self._dumps}"
        lines = dump.read_text(errors="replace").splitlines()
        return next(int(line.split()[1]) for line in reversed(lines) if line.startswith("totals:"))

    def control(self, *arguments: str) -> None:
        command = ["callgrind_control", *arguments, str(self._pid)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=_ANSWER_S)


@contextlib.contextmanager
def _counted(key: str, upstream_port: int) -> Iterator[_Counted]:
    relay = _relay(key)
    assert relay.launch is not None
    original = relay.launch
    with tempfile.TemporaryDirectory(prefix="instructions-") as name:
        directory = Path(name)

        def launch(place: relays.Place) -> relays.Launch:
            inner = original(place)
            valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
            valgrind += [f"--callgrind-out-file={directory}/callgrind.out"]
            return relays.Launch([*valgrind, *inner.argv], {**inner.environment, "PYTHONHASHSEED": "0"})

        slow = relays.Relay(relay.key, relay.title, launch)
        with relays.running(
            slow, upstream_port=upstream_port, commands=os.environ.get("PATH", ""), work=None, start_s=_START_S
        ) as running:
            assert running.pid is not None
            counted = _Counted(running.pid, running.port, directory)
            counted.control("--instr=on")
            yield counted


class _Upstream:
    """Answers whole replies at once, and each event of a stream when `next_event` is released."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.tokens = _SHORT
        self.next_event = threading.Semaphore(0)

    def begin(self, tokens: int) -> None:
        """The next stream has so many tokens."""
        self.tokens, self.next_event = tokens, threading.Semaphore(0)

    def __enter__(self) -> "_Upstream":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the run is over
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection.makefile("rb") as reader:
                while head := _head(reader):
                    body = reader.read(wire.content_length(head) or 0)
                    self._answer(connection, head, body)

    def _answer(self, connection: socket.socket, head: bytes, body: bytes) -> None:
        reply_id = b"0123456789abcdef"
        if not head.startswith(b"POST"):
            connection.sendall(wire.plain_reply("200 OK", {"object": "list", "data": []}))
        elif b'"stream":true' not in body.replace(b" ", b""):
            connection.sendall(reply_id.join(wire.whole_reply()))
        else:
            events = [*wire.stream_events(self.tokens)]
            connection.sendall(wire.stream_head() + reply_id.join(events[0]))
            for event in events[1:]:
                self._wait()
                connection.sendall(reply_id.join(event))
            self._wait()
            connection.sendall(reply_id.join(wire.usage_event()) + wire.done())

    def _wait(self) -> None:
        if not self.next_event.acquire(timeout=_ANSWER_S):
            raise ConnectionError("the caller has not read the last event in time")


class _Caller:
    """One connection to the server."""

    def __init__(self, port: int, upstream: _Upstream) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._upstream = upstream
        self._number = 0

    def close(self) -> None:
        self._socket.close()

    def reply(self) -> None:
        wire.check_whole(self._ask(stream=False, until=_is_whole))

    def stream(self, tokens: int) -> None:
        self._upstream.begin(tokens)
        raw = self._ask(stream=True, until=lambda raw: raw.endswith(wire.TERMINATOR))
        wire.check_stream(raw, tokens=tokens)

    def _ask(self, *, stream: bool, until: Callable[[bytes], bool]) -> bytes:
        self._number += 1
        request = wire.chat_request(host="127.0.0.1", stream=stream)
        self._socket.sendall((b"%08d" % self._number).join(request))
        raw, events = b"", 0
        while not until(raw):
            received = self._socket.recv(1 << 16)
            if not received:
                raise ConnectionError("the server closed the connection")
            raw += received
            # Each event that has come lets the upstream send the next.
            come = raw.count(b"data: {")
            if come > events:
                self._upstream.next_event.release(come - events)
                events = come
        return raw


def _is_whole(raw: bytes) -> bool:
    head, blank, body = raw.partition(b"\r\n\r\n")
    return bool(blank) and len(body) >= (wire.content_length(head) or 0)


def _head(reader: BinaryIO) -> bytes:
    """A request's head, b"" where the connection ends."""
    lines = []
    while (line := reader.readline()) not in (b"", b"\r\n"):
        lines.append(line)
    return b"".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.instructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--replies", type=int, default=200, help="how many are counted")
    parser.add_argument("--streams", type=int, default=5, help="how many of each length are counted")
    parser.add_argument("--only", default=",".join(_ROWS), help="rows, with commas")
    return parser.parse_args()


if __name__ == "__main__":
    main()
