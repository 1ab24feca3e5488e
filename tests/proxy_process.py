"""The real command over a raw upstream, as the black-box tests share it: its address, and what it complained of."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.raw_http import Address, ask, request
from tests.serving import ServerProcess, server_process


@dataclass(frozen=True, slots=True)
class ProxyProcess:
    server: ServerProcess

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def address(self) -> Address:
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    def complaints(self) -> list[str]:
        """What the console and the log tell of exceptions nobody expected, with the lines after each."""
        logged = (line for file in (self.server.folder / "logs").glob("*") for line in file.read_text().splitlines())
        lines = [*self.server.output, *logged]
        starts = [i for i, line in enumerate(lines) if "Traceback" in line or "is lost" in line]
        return [line for start in starts for line in lines[start : start + 80]]


@contextmanager
def run_proxy(folder: Path, *, upstream_url: str) -> Iterator[ProxyProcess]:
    """Serve `upstream_url` from a database in `folder`, keys off; in the end it must answer and have no complaints."""
    with server_process(folder, upstream_url) as server:
        proxy = ProxyProcess(server)
        yield proxy
        assert ask(proxy.address, request(b"/health", method=b"GET")).status == 200
        assert server.stop() == 0
        assert proxy.complaints() == []
