"""Two workers, requests of any name at any rate, and kills: every counter is right, and series stay bounded."""

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.telemetry.metrics import MODELS_MAX
from tests.fake_upstream import Call, Wire, fake_upstream, whole, whole_json
from tests.serving import ServerProcess, child_of, server_process
from tests.stored import choice
from tests.telemetry.test_metrics import CHAT, Samples, samples, tokens

KILLS_MAX = 3
BAD_JSON = b"{bad"
SECONDS = 120.0  # a new worker has to load the program beside other tests

names = st.one_of(st.text(max_size=30), st.sampled_from(["模" * 119, "\ud800", "\n", "other", "a" * 20_000, '"} 1\n']))
requests = st.tuples(
    st.sampled_from(["served", "refused", "not stored", "no JSON", "path", "relayed"]), names, names, st.integers(0, 50)
)


async def model(call: Call, wire: Wire) -> None:
    """Serves the models whose names begin with `ok`; a prompt is as many tokens as its text says."""
    body: Any = json.loads(call.body) if call.body != BAD_JSON else {"model": ""}
    if not body["model"].startswith("ok"):
        await whole_json({"error": {"message": "no such model", "code": 404}}, status=404)(call, wire)
        return
    usage = {"prompt_tokens": int(body["messages"][0]["content"]), "completion_tokens": 1}
    await whole(json.dumps({"model": body["model"], "choices": [choice("yes")], "usage": usage}).encode())(call, wire)


class Counted:
    """What the server was asked, and what it says of that."""

    def __init__(self, server: ServerProcess, http: httpx.AsyncClient) -> None:
        self.server, self.http = server, http
        self.requests: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.scrapes = 0
        self.kills = 0

    async def ask(self, kind: str, name: str, user: str, size: int) -> None:
        """One request, counted by its answer."""
        said = {"model": ("ok" if kind in ("served", "not stored") else "no") + name, "user": user}
        body: dict[str, Any] = {**said, "messages": [{"role": "user", "content": str(size)}]}
        if kind == "path":
            answer = await self.http.get("/v1/sessions/" + quote(name.encode("utf-8", "replace"), safe=""))
        elif kind == "relayed":
            answer = await self.http.post(
                "/v1/" + quote(name.encode("utf-8", "replace"), safe=""), content=json.dumps(body)
            )
        elif kind == "no JSON":
            answer = await self.http.post(CHAT, content=BAD_JSON)
        else:
            body |= {"store": False} if kind == "not stored" else {}
            answer = await self.http.post(CHAT, content=json.dumps(body))
        chats = {"served": "completed", "refused": "failed"}
        self.requests[chats.get(kind, f"{answer.status_code // 100}xx")] += 1
        self.prompt_tokens += size if kind == "served" else 0

    async def scrape(self) -> Samples:
        """The metrics; this request is not in them."""
        found = samples((await self.http.get("/metrics")).raise_for_status().text)
        found["stellarchat_requests_total", "2xx"] -= self.scrapes
        self.scrapes += 1
        return found

    async def settled(self) -> Samples:
        """The metrics when all that was answered is counted: it is, some moments after its answer."""
        async with asyncio.timeout(SECONDS):
            while True:
                found = await self.scrape()
                if self.of(found) == self.requests:
                    return found
                assert self.of(found) <= self.requests, (self.of(found), self.requests)
                await asyncio.sleep(0.02)

    def of(self, found: Samples) -> Counter[str]:
        counting = ("stellarchat_chats_total", "stellarchat_requests_total")
        return +Counter({key[1]: int(value) for key, value in found.items() if key[0] in counting})

    async def kill_one(self) -> None:
        """kill -9 a worker, and wait for the next."""
        if self.kills == KILLS_MAX:
            return
        self.kills += 1
        os.kill(child_of(self.server.pid), signal.SIGKILL)
        async with asyncio.timeout(SECONDS):
            while not self.server_has_two(await self.scrape_through_the_kill()):
                await asyncio.sleep(0.05)

    async def scrape_through_the_kill(self) -> Samples:
        """As `scrape`; nothing where the killed worker had taken the connection."""
        try:
            return await self.scrape()
        except httpx.TransportError:
            return {}

    def server_has_two(self, found: Samples) -> bool:
        return found.get(("stellarchat_workers",)) == 2

    async def run(self, asked: list[tuple[str, str, str, int]], *, at_once: int, kills: bool) -> None:
        for start in range(0, len(asked), at_once):
            await asyncio.gather(*(self.ask(*each) for each in asked[start : start + at_once]))
        found = await self.settled()
        if kills:
            await self.kill_one()
            found = await self.settled()
        counted = tokens(found)
        assert sum(value for key, value in counted.items() if "prompt" in key) == self.prompt_tokens
        assert sum(value for key, value in counted.items() if "completion" in key) == self.requests["completed"]
        assert len(counted) <= 2 * MODELS_MAX
        assert len(found) <= 400 + 2 * MODELS_MAX


async def test_every_counter_is_right_over_two_workers_and_kills(tmp_path: Path) -> None:
    async with fake_upstream() as upstream:
        upstream.on(CHAT, model)
        upstream.on("*", whole_json({"ok": True}))
        with server_process(tmp_path, upstream.url, "--workers", "2") as server:
            limits = httpx.Limits(max_keepalive_connections=0)  # a kept connection ends with its worker
            async with httpx.AsyncClient(base_url=server.url, timeout=SECONDS, limits=limits) as http:
                counted, loop = Counted(server, http), asyncio.get_running_loop()

                @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)
                @given(st.lists(requests, max_size=25), st.integers(1, 10), st.booleans())
                def try_all(asked: list[tuple[str, str, str, int]], at_once: int, kills: bool) -> None:
                    work = counted.run(asked, at_once=at_once, kills=kills)
                    asyncio.run_coroutine_threadsafe(work, loop).result(4 * SECONDS)

                await asyncio.to_thread(try_all)
                assert counted.kills
            assert server.stop() == 0
