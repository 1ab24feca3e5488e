"""A TCP proxy in front of PostgreSQL that cuts a connection at a COMMIT, before the server gets it or after it, or that
lets nothing through for a while.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

_SECONDS = 0.3  # in which the server does what it got


class Cutting:
    """`cuts` says where the next COMMITs are cut, one connection each."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cuts: list[Literal["before", "after"]] = []
        self._open = {"up": threading.Event(), "down": threading.Event()}
        for each in self._open.values():
            each.set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @contextmanager
    def silent(self, *directions: Literal["up", "down"]) -> Iterator[None]:
        """Let nothing through to the server (up), or to its clients (down); it arrives after the block."""
        for each in directions:
            self._open[each].clear()
        try:
            yield
        finally:
            for each in directions:
                self._open[each].set()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            downwards = threading.Thread(target=_pass, args=(server, client, self._open["down"]), daemon=True)
            downwards.start()
            with suppress(OSError):
                self._upwards(client, server)
            for each in (client, server):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            downwards.join()

    def _upwards(self, client: socket.socket, server: socket.socket) -> None:
        while data := client.recv(65536):
            if self.cuts and b"COMMIT\0" in data:
                if self.cuts.pop(0) == "after":
                    client.shutdown(socket.SHUT_RDWR)  # nobody hears the answer
                    server.sendall(data)
                    threading.Event().wait(_SECONDS)
                return
            self._open["up"].wait()
            server.sendall(data)


def _pass(source: socket.socket, target: socket.socket, is_open: threading.Event) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            is_open.wait()
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting(port: int) -> Iterator[Cutting]:
    """The proxy while the block lasts."""
    proxy = Cutting(port)
    try:
        yield proxy
    finally:
        proxy.close()
