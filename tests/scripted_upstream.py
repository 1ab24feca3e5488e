"""The fake upstream in a thread of its own, for tests that wait in blocking calls: it plays the script a test gives."""

import asyncio
import enum
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.fake_upstream import Call, Wire, fake_upstream, never
from tests.raw_http import WAIT_SECONDS, Address, Head, parse_head

T = TypeVar("T")


class Step(enum.Enum):
    CLOSE = "close the connection"
    RESET = "reset the connection"
    AWAIT_RELEASE = "wait until the test calls release()"
    AWAIT_HANGUP = "wait until the caller has left"


@dataclass(frozen=True, slots=True)
class Received:
    """A call in the bytes that arrived; the body is empty until all of it is here."""

    call: Call

    @property
    def head(self) -> Head:
        return parse_head(self.call.head)

    @property
    def method(self) -> bytes:
        return self.call.method.encode("latin-1")

    @property
    def target(self) -> bytes:
        return self.call.target.encode("latin-1")

    @property
    def body(self) -> bytes:
        return self.call.body

    @property
    def hung_up(self) -> bool:
        return self.call.left is not None


Script = Callable[[Received], Iterator[bytes | Step]]


def respond(
    body: bytes = b"", *, status: bytes = b"200 OK", headers: bytes = b"Content-Type: application/json\r\n"
) -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, headers, len(body), body)


def always(*steps: bytes | Step) -> Script:
    return lambda _: iter(steps)


def echo(received: Received) -> Iterator[bytes | Step]:
    """What was received, in a form that is also a chat completion."""
    content = f"{received.method.decode()} {received.target.decode('latin-1')}: {len(received.body)} bytes"
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    whole = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }
    answer = respond(json.dumps(whole).encode())
    yield answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if received.method == b"HEAD" else answer


class ScriptedUpstream:
    """Listens on a free port of 127.0.0.1 until closed. `script` may be replaced at any time."""

    def __init__(self) -> None:
        self.script: Script = echo
        self._released = asyncio.Semaphore(0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()
        self._fake = self._wait_for(self._stack.enter_async_context(fake_upstream()))
        self._fake.on_all(self._play)

    @property
    def address(self) -> Address:
        return "127.0.0.1", self._fake.port

    @property
    def url(self) -> str:
        return self._fake.url

    @property
    def received(self) -> list[Received]:
        return [Received(call) for call in self._fake.calls]

    def play(self, script: Script) -> None:
        """Start anew with this script."""
        self.script = script
        self._fake.calls = []
        self._released = asyncio.Semaphore(0)

    def release(self) -> None:
        """Let a script that waits go one step further."""
        self._loop.call_soon_threadsafe(self._released.release)

    def await_request(self, count: int = 1) -> Received:
        """The last of `count` requests, as soon as its head is here."""
        self._wait_for(self._fake.until(lambda: len(self._fake.calls) >= count))
        return self.received[count - 1]

    def close(self) -> None:
        """End every connection; what went wrong in a script is raised here."""
        try:
            self._wait_for(self._stack.aclose())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_SECONDS)

    async def _play(self, call: Call, wire: Wire) -> None:
        for step in self.script(Received(call)):
            match step:
                case bytes():
                    await wire.send(step)
                case Step.AWAIT_RELEASE:
                    await self._released.acquire()
                case Step.AWAIT_HANGUP:
                    await never()(call, wire)
                case Step.CLOSE:
                    await wire.finish()
                case Step.RESET:
                    await wire.reset()
            if wire.ended:
                return
