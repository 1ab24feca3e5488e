"""Callers that know what they sent and what they got: each request has a number of its own."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench import dialects, texts, wire
from tests.bench.relays import Running

_AT_MOST_S = 60.0
_AFTER_THE_KILL_S = 20.0
_END = b"\r\n" + wire.TERMINATOR


@dataclass(slots=True)
class Got:
    """What the caller of one request got: `ended` says that it saw a whole reply, at the time `at`."""

    number: int
    text: str = ""
    ended: bool = False
    at: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """What kind of reply is asked for. The upstream must be set to as many tokens, and as many a second."""

    stream: bool
    tokens: int = 0
    rate: int = 0
    leaves_after: int = 0
    """The caller leaves once it has so many events; 0: it stays."""

    def seconds_of(self, text: str) -> float:
        """How long a stream takes to bring so much text."""
        whole = "".join(wire.token_texts(self.tokens))
        return len(text) / len(whole) * self.tokens / self.rate


WHOLE = Kind(stream=False)


@dataclass(frozen=True, slots=True)
class Killed:
    """What callers got of a relay that was killed at the time `at`."""

    got: list[Got]
    kind: Kind
    at: float


async def ask(relay: Running, got: Got, kind: Kind) -> None:
    """Send one request on a connection of its own, and note what came until it was closed or the caller left."""
    raw = bytearray()
    try:
        async with asyncio.timeout(_AT_MOST_S):
            await _exchange(relay, got.number, kind, raw)
    except TimeoutError:
        got.error = f"not done within {_AT_MOST_S:.0f} s"
    except OSError as exc:
        got.error = repr(exc)
    got.at = time.monotonic()
    _judge(relay, got, kind, bytes(raw))


async def _exchange(relay: Running, number: int, kind: Kind, raw: bytearray) -> None:
    api = relay.api
    before, after = dialects.request(api.endpoint, host=f"127.0.0.1:{relay.port}", stream=kind.stream, model=api.model)
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    try:
        writer.write(b"%b%08d%b" % (before, number, after))
        while not (_has_ended(raw) or _has_enough(raw, kind)) and (data := await reader.read(65536)):
            raw += data
    finally:
        writer.transport.abort()


def _has_ended(raw: bytes | bytearray) -> bool:
    if raw.endswith(_END):
        return True
    head_end = raw.find(b"\r\n\r\n")
    length = wire.content_length(bytes(raw[: head_end + 2])) if head_end >= 0 else None
    return length is not None and len(raw) >= head_end + 4 + length


def _has_enough(raw: bytearray, kind: Kind) -> bool:
    return 0 < kind.leaves_after <= raw.count(b"data: ")


def _judge(relay: Running, got: Got, kind: Kind, raw: bytes) -> None:
    body = raw.partition(b"\r\n\r\n")[2]
    got.text = texts.of_events(body) if kind.stream else texts.of_body(body)
    if not _has_ended(raw):
        return
    try:
        if kind.stream:
            dialects.check_stream(relay.api.endpoint, raw, tokens=kind.tokens, sends_done=relay.api.sends_done)
        else:
            dialects.check_whole(relay.api.endpoint, raw)
        got.ended = True
    except (ValueError, KeyError, TypeError) as exc:
        got.error = str(exc)[:200]


async def ask_many(relay: Running, numbers: Sequence[int], kind: Kind, *, at_once: int) -> list[Got]:
    """One request for each number."""
    every = [Got(number) for number in numbers]
    waiting = iter(every)

    async def caller() -> None:
        for got in waiting:
            await ask(relay, got, kind)

    await asyncio.gather(*(caller() for _ in range(at_once)))
    return every


async def ask_until_killed(
    relay: Running, first: int, kind: Kind, *, at_once: int, ramp_s: float, seconds: float, kill: Callable[[], None]
) -> Killed:
    """Callers that ask again and again until the relay is killed; they begin one after the other over `ramp_s`."""
    every: list[Got] = []
    numbers = itertools.count(first)
    killed = False

    async def caller(delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while not killed:
            every.append(got := Got(next(numbers)))
            await ask(relay, got, kind)

    tasks = [asyncio.create_task(caller(ramp_s * i / at_once)) for i in range(at_once)]
    await asyncio.sleep(seconds)
    killed, at = True, time.monotonic()
    kill()
    _, late = await asyncio.wait(tasks, timeout=_AFTER_THE_KILL_S)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return Killed(every, kind, at)
