"""Conversations on real vLLM servers behind one proxy, measured by vLLM's own prefix-cache metrics.

Run by hand: `python -m tests.real_vllm http://127.0.0.1:8110 http://127.0.0.1:8111`. The first part runs the same
conversations once with the proxy's choice and once with one at random; tokens are counted from the second turn on. The
effect shows where an engine's cache holds its own conversations but not all of them (`--num-gpu-blocks-override`). With
`--kill PID --restart 'COMMAND'` the second part ends the first engine under load (PID's whole process group), starts it
again, and waits until it is used.
"""

import argparse
import asyncio
import os
import random
import re
import shlex
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import httpx

from proxy.upstream.choice import choose
from tests.serving import running_proxy, settings_for

CHAT = "/v1/chat/completions"
MODEL = "smollm2"
_RETURN_SECONDS = 600
ADMIN = "real-vllm-0123456789abcdef0123456789"
_QUESTION = "In one short sentence, tell me something new about number {}, and why it matters to people who count. "


async def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstreams", nargs="+")
    parser.add_argument("--conversations", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--sentences", type=int, default=5, help="in each question; about 30 tokens each")
    parser.add_argument("--kill", type=int, help="the process group of the first upstream")
    parser.add_argument("--restart", help="the command that starts it again")
    options = parser.parse_args()
    for name, chosen_by in (("affinity", choose), ("random", _at_random)) if options.conversations else ():
        with mock.patch(
            "proxy.upstream.upstreams.choose", chosen_by
        ):  # not a test: the two ways to choose are compared
            await _measure_hits(name, options)
    if options.kill:
        await _measure_failover(options)


def _at_random(order: Sequence[Any]) -> Any:
    return random.choice(order)


async def _measure_hits(name: str, options: argparse.Namespace) -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(Path(folder), upstream_url=",".join(options.upstreams), admin_key=ADMIN)
        async with running_proxy(settings) as url, _client(url) as http:
            talks = [_Conversation(f"{name}-{number}", options.sentences) for number in range(options.conversations)]
            before: list[tuple[float, float]] = []
            for _ in range(options.turns):
                for i in range(0, len(talks), 2):  # two at a time: neither engine is passed over for its load
                    await asyncio.gather(*(talk.take_turn(http) for talk in talks[i : i + 2]))
                before = before or [await _prefix_cache(url) for url in options.upstreams]
    after = [await _prefix_cache(url) for url in options.upstreams]
    asked = sum(new[0] - old[0] for new, old in zip(after, before, strict=True))
    hit = sum(new[1] - old[1] for new, old in zip(after, before, strict=True))
    stayed = sum(len(set(talk.answered_by)) == 1 for talk in talks)
    print(
        f"{name}: {stayed} of {len(talks)} conversations on one engine; prefix cache: "
        f"{hit:.0f} of {asked:.0f} tokens hit ({hit / asked:.1%}); {time.monotonic() - started:.1f} s"
    )


class _Conversation:
    def __init__(self, name: str, sentences: int) -> None:
        self._name = name
        self._sentences = sentences
        self._rng = random.Random(name)
        self._messages: list[dict[str, str]] = []
        self.answered_by: list[str] = []

    async def take_turn(self, http: httpx.AsyncClient) -> None:
        """Ask something, with all that was said before."""
        numbers = [self._rng.randrange(10**6) for _ in range(self._sentences)]
        text = f"{self._name}, {len(self._messages)}: " + "".join(map(_QUESTION.format, numbers))
        self._messages.append({"role": "user", "content": text})
        reply = await http.post(CHAT, json={"model": MODEL, "messages": self._messages, "max_tokens": 4})
        reply.raise_for_status()
        answer = reply.json()["choices"][0]["message"]["content"] or "-"
        self._messages.append({"role": "assistant", "content": answer})
        self.answered_by.append(reply.headers["x-stellarchat-upstream"])


async def _prefix_cache(url: str) -> tuple[float, float]:
    """Tokens that were looked for in an engine's prefix cache, and tokens that were found."""
    async with httpx.AsyncClient(timeout=60) as http:
        text = (await http.get(f"{url}/metrics")).text
    found = [
        re.search(rf"^vllm:prefix_cache_{name}_total\S* (\S+)$", text, re.MULTILINE) for name in ("queries", "hits")
    ]
    queries, hits = (0.0 if each is None else float(each[1]) for each in found)
    return queries, hits


async def _measure_failover(options: argparse.Namespace) -> None:
    ended: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(Path(folder), upstream_url=",".join(options.upstreams), admin_key=ADMIN)
        async with running_proxy(settings) as url, _client(url) as http:
            stop = asyncio.Event()
            load = [asyncio.create_task(_load(http, number, ended, stop)) for number in range(8)]
            await asyncio.sleep(6)
            os.killpg(options.kill, signal.SIGKILL)
            print("killed; until then:", dict(ended))
            ended.clear()
            await asyncio.sleep(15)
            print("15 s later:", dict(ended))
            ended.clear()
            subprocess.Popen(shlex.split(options.restart), start_new_session=True)  # noqa: ASYNC220
            await _watch_return(http, options.upstreams[0], ended)
            print("until then:", dict(ended))
            stop.set()
            await asyncio.gather(*load)


async def _watch_return(http: httpx.AsyncClient, url: str, ended: Counter[str]) -> None:
    """Say when the engine answers its probe, when the proxy counts it, and when a chat has ended on it."""
    started = time.monotonic()

    async def answers() -> bool:
        try:
            return (await http.get(f"{url}/health", timeout=5)).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    async def is_counted() -> bool:
        return bool((await http.get("/ready")).json()["upstreams"]["down"] == 0)

    async def is_used() -> bool:
        return bool(ended[f"whole {url}"])

    for what, has_come in (("/health answers", answers), ("/ready counts it", is_counted), ("a chat ended", is_used)):
        while not await has_come():
            if time.monotonic() - started > _RETURN_SECONDS:
                print(f"NOT: {what}")
                return
            await asyncio.sleep(0.5)
        print(f"{what} {time.monotonic() - started:.1f} s after its start")


async def _load(http: httpx.AsyncClient, number: int, ended: Counter[str], stop: asyncio.Event) -> None:
    turn = 0
    while not stop.is_set():
        turn += 1
        ended[await _stream(http, f"load {number}, conversation {turn}")] += 1


async def _stream(http: httpx.AsyncClient, text: str) -> str:
    """How one stream ended: whole, cut after it had begun, or answered with an error."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"{text}: tell me a long story."}],
        "max_tokens": 48,
        "stream": True,
    }
    where, text = "-", ""
    try:
        async with http.stream("POST", CHAT, json=body) as reply:
            where = reply.headers.get("x-stellarchat-upstream", "-")
            async for piece in reply.aiter_text():
                text += piece
    except httpx.HTTPError as exc:
        begun = text.count('"content":') > 1  # the first event has the role, and no text
        return f"cut after {'its first tokens' if begun else 'its head'} {type(exc).__name__} {where}"
    if reply.status_code != httpx.codes.OK:
        return f"error {reply.status_code} {where}"
    return f"whole {where}" if text.endswith("data: [DONE]\n\n") else f"without an end {where}"


def _client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=600, headers={"authorization": f"Bearer {ADMIN}"})


asyncio.run(main())
