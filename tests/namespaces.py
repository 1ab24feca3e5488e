"""Hosts on one machine: network namespaces, each with a link to this one, and to the first of them."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest


class Host:
    """A network namespace; the database's is number 0."""

    def __init__(self, number: int) -> None:
        self.name = f"stellarchat-{os.getpid()}-{number}"
        self.number = number
        self.address = f"10.213.{number}.2"
        self.database_address = f"10.213.{100 + number}.1"  # what it reaches the first host by

    @property
    def prefix(self) -> list[str]:
        """What a command is run inside by."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """Take the link to the first host away."""
        _run(*self.prefix, "ip", "link", "set", "to0", "down")

    def mend(self) -> None:
        """Bring it back."""
        _run(*self.prefix, "ip", "link", "set", "to0", "up")

    def make(self, stack: ExitStack, first: "Host | None") -> None:
        """Make the namespace and its links."""
        _run("ip", "netns", "add", self.name)
        stack.callback(_run, "ip", "netns", "del", self.name)
        outer = f"sc{os.getpid() % 100000}x{self.number}"
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "up0", "netns", self.name)
        _run("ip", "address", "add", f"10.213.{self.number}.1/30", "dev", outer)
        _run("ip", "link", "set", outer, "up")
        self._address("up0", f"{self.address}/30")
        _run(*self.prefix, "ip", "link", "set", "lo", "up")
        if first is not None:
            inner = f"to{self.number}"
            peer = ["peer", "name", "to0", "netns", self.name]
            _run(*first.prefix, "ip", "link", "add", inner, "type", "veth", *peer)
            first._address(inner, f"{self.database_address}/30")
            self._address("to0", f"10.213.{100 + self.number}.2/30")

    def _address(self, device: str, address: str) -> None:
        _run(*self.prefix, "ip", "address", "add", address, "dev", device)
        _run(*self.prefix, "ip", "link", "set", device, "up")


@contextmanager
def hosts(count: int) -> Iterator[Sequence[Host]]:
    """So many hosts. Skips the test where they cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    made = [Host(number) for number in range(count)]
    with ExitStack() as stack:
        try:
            for host in made:
                host.make(stack, None if host is made[0] else made[0])
        except subprocess.CalledProcessError as exc:
            pytest.skip(f"no network namespaces here: {exc.stderr.strip()}")
        yield made


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
