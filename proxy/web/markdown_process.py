"""Manages the Markdown helper process: starts it on first use, stops it when idle, kills it on timeout."""

import asyncio
import subprocess
import sys
import threading
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path

_PROGRAM = Path(__file__).with_name("markdown.py")
# A text may be written to keep the parser busy for minutes; the helper is killed, and the page shows plain text.
_SECONDS_MAX = 2.0
_START_SECONDS_MAX = 8.0  # importing the parser on a loaded machine
_IDLE_SECONDS = 60.0  # then the helper's memory is given back
# One text is converted at a time, so the last of these waits a minute at worst; others are shown as plain text.
_WAITING_MAX = 32
_KEPT, _KEPT_BYTES = 512, 8 * 2**20
_ANSWER_BYTES_MAX = 2 * 2**20  # a damaged length must not make this process read for ever


class MarkdownProcess:
    """One process's helper. A text whose conversion failed is not tried again; the page shows it as plain text."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0
        self._made: OrderedDict[bytes, str | None] = OrderedDict()
        self._made_bytes = 0
        self._idle: asyncio.TimerHandle | None = None

    async def html_of(self, text: str) -> str | None:
        """The text as HTML; None if the conversion failed or took too long."""
        digest = sha256(text.encode("utf-8", "replace")).digest()
        if digest in self._made:
            self._made.move_to_end(digest)
            return self._made[digest]
        if self._waiting >= _WAITING_MAX:
            return None
        self._waiting += 1
        try:
            async with self._turn:
                html = await asyncio.to_thread(self._convert, text)
        finally:
            self._waiting -= 1
        self._keep(digest, html)
        self._end_when_idle()
        return html

    async def close(self) -> None:
        """Stops the helper."""
        if self._idle is not None:
            self._idle.cancel()
        async with self._turn:
            await asyncio.to_thread(self._end)

    def _keep(self, digest: bytes, html: str | None) -> None:
        self._made[digest] = html
        self._made_bytes += len(html or "")
        while len(self._made) > _KEPT or self._made_bytes > _KEPT_BYTES:
            _, dropped = self._made.popitem(last=False)
            self._made_bytes -= len(dropped or "")

    def _end_when_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._kill)

    def _kill(self) -> None:
        """Kills the helper. It is reaped before the next start, or on close."""
        if self._child is not None and not self._waiting:
            self._child.kill()

    # Runs in a thread, one call at a time

    def _convert(self, text: str) -> str | None:
        seconds = _SECONDS_MAX
        if self._child is not None and self._child.poll() is not None:
            self._end()
        if self._child is None:
            seconds = _START_SECONDS_MAX
            # -P: do not import modules from the program's own folder.
            command = [sys.executable, "-P", str(_PROGRAM)]
            self._child = subprocess.Popen(  # noqa: S603 - our own program, without a shell
                # Nobody reads its errors: a full pipe would block it.
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        timer = threading.Timer(seconds, self._child.kill)
        timer.start()
        try:
            answer = _asked(self._child, text.encode("utf-8", "replace"))
        except OSError:  # it has exited
            answer = None
        finally:
            timer.cancel()
        if answer is None:
            self._end()
        return answer

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()


def _asked(child: subprocess.Popen[bytes], text: bytes) -> str | None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(len(text).to_bytes(4, "big") + text)
    child.stdin.flush()
    head = child.stdout.read(4)
    length = int.from_bytes(head, "big")
    if len(head) < 4 or length > _ANSWER_BYTES_MAX:
        return None
    html = child.stdout.read(length)
    return html.decode() if len(html) == length else None
