"""`python -m tests.bench.distant PORT MS`: a TCP proxy in front of a port of this machine that is so far away.

It prints its own port. Each direction takes half of the time, in a thread: an event loop's clock is too coarse.
"""

import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PIECES_MAX = 1024


@contextmanager
def distant(port: int, milliseconds: float) -> Iterator[int]:
    """The port of such a proxy, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.distant", str(port), str(milliseconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def main() -> None:
    port, seconds = int(sys.argv[1]), float(sys.argv[2]) / 2000
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client = listener.accept()[0]
            server = socket.create_connection(("127.0.0.1", port))
            for one, other in ((client, server), (server, client)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_pass, args=(one, other, seconds), daemon=True).start()


def _pass(source: socket.socket, target: socket.socket, seconds: float) -> None:
    """A long message is received in several pieces: each is late by the same time, not one after the other."""
    pieces = queue.Queue[tuple[float, bytes]](_PIECES_MAX)
    threading.Thread(target=_deliver, args=(pieces, target), daemon=True).start()
    with suppress(OSError):
        while data := source.recv(2**20):
            pieces.put((time.monotonic() + seconds, data))
    pieces.put((0.0, b""))


def _deliver(pieces: queue.Queue[tuple[float, bytes]], target: socket.socket) -> None:
    with suppress(OSError):
        while (piece := pieces.get())[1]:
            time.sleep(max(0.0, piece[0] - time.monotonic()))
            target.sendall(piece[1])
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main()
