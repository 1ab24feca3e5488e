"""Quotas over processes of one host: shared while they live, released by dead ones, divided without the file."""

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.access import shared_usage
from proxy.access.quotas import DayTokens, Usage, take_request
from proxy.access.shared_usage import SharedUsage
from proxy.errors import APIError
from proxy.storage import shared_files
from tests.access.test_keys import bearer, make_key
from tests.fake_upstream import FakeUpstream, fake_upstream, never, sse, whole_json
from tests.serving import child_of, running_proxy, server_process, settings_for

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]
DAY = "2026-11-27"
USED = 105
EMPTY = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 100, "total_tokens": 105}}\n\n'

BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": MESSAGES}),
    "chat with a limit": (CHAT, {"messages": MESSAGES, "max_tokens": 100}),
    "chat not stored": (CHAT, {"messages": MESSAGES, "store": False}),
    "responses": ("/v1/responses", {"input": "x"}),
    "messages": ("/v1/messages", {"max_tokens": 100, "messages": MESSAGES}),
    "completions": ("/v1/completions", {"prompt": "x"}),
    "embeddings": ("/v1/embeddings", {"input": "x"}),
}


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with fake_upstream() as fake:
        reply = {"usage": {"prompt_tokens": 5, "completion_tokens": USED - 5, "total_tokens": USED}}
        for path in {path for path, _ in BODIES.values()}:
            fake.on(path, whole_json({"choices": [], **reply}))
        yield fake


@asynccontextmanager
async def two_workers(folder: Path, upstream_url: str, key: str) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Two applications as two workers have them: they share the database and the file, and no memory of Python's."""
    settings = settings_for(folder, upstream_url=upstream_url, auth="required", workers=2)
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(2):
            url = await stack.enter_async_context(running_proxy(settings))
            client = httpx.AsyncClient(base_url=url, headers=bearer(key), timeout=30)
            clients.append(await stack.enter_async_context(client))
        yield clients


async def status_of(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> int:
    return (await client.post(path, json={"model": "m", **body})).status_code


@pytest.mark.parametrize("kind", BODIES)
async def test_20_at_once_at_two_workers_use_the_quota_and_one_reply_at_most(
    upstream: FakeUpstream, tmp_path: Path, kind: str
) -> None:
    path, body = BODIES[kind]
    async with two_workers(tmp_path, upstream.url, make_key(tmp_path, tokens_per_day=300)) as clients:
        for _ in range(3):
            asked = (status_of(clients[number % 2], path, body) for number in range(20))
            assert set(await asyncio.gather(*asked)) <= {200, 429}
        assert len(upstream.calls_to(path)) * USED < 300 + USED
        for _ in range(3):  # in the end all of it can be used
            await status_of(clients[0], path, body)
        assert 300 <= len(upstream.calls_to(path)) * USED < 300 + USED


@pytest.mark.parametrize("store", (True, False))
async def test_cut_streams_at_two_workers_are_charged_together(
    upstream: FakeUpstream, tmp_path: Path, store: bool
) -> None:
    async def endless(_call: Any, wire: Any) -> None:
        await wire.head(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")])
        while True:
            await wire.chunk(EMPTY)
            await asyncio.sleep(0.002)

    upstream.on(CHAT, endless)
    body = {"model": "m", "messages": MESSAGES, "stream": True, "store": store, "max_tokens": 60}

    async def cut(client: httpx.AsyncClient) -> int:
        """The events received before the caller leaves."""
        async with client.stream("POST", CHAT, json=body) as reply:
            seen = b""
            async for piece in reply.aiter_raw():
                seen += piece
                if reply.status_code != 200 or seen.count(b"\n\n") >= 40:
                    break
            return seen.count(b"\n\n") if reply.status_code == 200 else 0

    async with two_workers(tmp_path, upstream.url, make_key(tmp_path, tokens_per_day=100)) as clients:
        events = 0
        for _ in range(4):
            counts = await asyncio.gather(*(cut(clients[number % 2]) for number in range(20)))
            events += sum(counts)
            await upstream.until(lambda: all(call.left is not None for call in upstream.calls))
            assert len([count for count in counts if count]) <= 2
        assert len(upstream.calls) <= 3
        assert events >= 80


async def test_streams_with_usage_at_two_workers_use_the_quota_and_one_reply_at_most(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.on(CHAT, sse([EMPTY, USAGE, b"data: [DONE]\n\n"]))
    body = {"messages": MESSAGES, "stream": True}
    async with two_workers(tmp_path, upstream.url, make_key(tmp_path, tokens_per_day=300)) as clients:
        for _ in range(4):
            asked = (status_of(clients[number % 2], CHAT, body) for number in range(20))
            assert set(await asyncio.gather(*asked)) <= {200, 429}
        assert len(upstream.calls) * USED < 300 + USED


async def test_two_workers_share_a_minute_s_requests(upstream: FakeUpstream, tmp_path: Path) -> None:
    async with two_workers(tmp_path, upstream.url, make_key(tmp_path, requests_per_minute=7)) as clients:
        replies = [await clients[turn % 2].get("/v1/models") for turn in range(9)]
        assert [reply.status_code for reply in replies] == [200] * 7 + [429] * 2
        assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies[:7]] == list("6543210")
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 9  # a place becomes free every 60 / 7 s


async def test_all_of_the_quota_can_be_used_at_one_of_two_workers(upstream: FakeUpstream, tmp_path: Path) -> None:
    async with two_workers(tmp_path, upstream.url, make_key(tmp_path, requests_per_minute=7)) as clients:
        assert [await status_of(clients[1], "/v1/embeddings", {}) for _ in range(8)] == [200] * 7 + [429]


async def test_a_killed_worker_releases_what_it_had_reserved(upstream: FakeUpstream, tmp_path: Path) -> None:
    key = make_key(tmp_path, tokens_per_day=300)
    upstream.on("/v1/completions", never())
    with server_process(tmp_path, upstream.url, "--workers", "2", STELLARCHAT_AUTH="required") as server:
        limits = httpx.Limits(max_keepalive_connections=0)  # so that each request may reach either worker
        async with httpx.AsyncClient(base_url=server.url, headers=bearer(key), limits=limits, timeout=30) as http:

            async def hold() -> None:
                with pytest.raises(httpx.TransportError):
                    await http.post("/v1/completions", json={"model": "m", "prompt": "x", "max_tokens": 400})

            held = asyncio.create_task(hold())
            await upstream.until(lambda: upstream.calls_to("/v1/completions"))
            for _ in range(10):
                assert await status_of(http, "/v1/embeddings", {}) == 429
            async with asyncio.timeout(30):
                while not held.done():
                    os.kill(child_of(server.pid), signal.SIGKILL)
                    await asyncio.wait([held], timeout=0.5)
                await held
                while await answered(http) != 200:
                    await asyncio.sleep(0.1)
        assert server.stop() == 0


async def answered(http: httpx.AsyncClient) -> int | None:
    """The status; None if the worker was killed before it answered."""
    try:
        return await status_of(http, "/v1/embeddings", {})
    except httpx.TransportError:
        return None


def shared_tokens(usage: SharedUsage, key_id: str = "k") -> DayTokens:
    return DayTokens(day=DAY, shared=usage.key(key_id))


def test_reservations_are_seen_at_once_and_released(tmp_path: Path) -> None:
    one, other = SharedUsage(tmp_path / "q"), SharedUsage(tmp_path / "q")
    mine, theirs = shared_tokens(one), shared_tokens(other)
    mine.reserve(100, per_day=100, unix_time=0.0)
    with pytest.raises(APIError) as refused:
        theirs.reserve(1, per_day=100, unix_time=0.0)
    assert refused.value.headers is not None
    assert refused.value.headers["Retry-After"] == "1"
    shared_tokens(other, "another key").reserve(1, per_day=100, unix_time=0.0)
    mine.settle(30, reserved=100)
    theirs.reserve(1, per_day=100, unix_time=0.0)
    assert theirs.held_by_others == 30
    mine.note_saved(30, day=DAY, saved=30)
    theirs.learn()
    assert (theirs.held_by_others, theirs.saved) == (0, 30)
    one.close()
    theirs.learn()
    assert (theirs.held_by_others, theirs.saved) == (0, 30)
    assert other.count == 1
    other.close()
    assert not (tmp_path / "q").exists()


def test_what_was_saved_on_another_day_is_not_todays(tmp_path: Path) -> None:
    one, other = SharedUsage(tmp_path / "q"), SharedUsage(tmp_path / "q")
    mine, theirs = shared_tokens(one), shared_tokens(other)
    mine.note_read(90, now=0.0)
    theirs.begin_day("2026-11-28")
    theirs.learn()
    assert theirs.saved == 0
    one.close()
    other.close()


def test_tokens_of_a_day_that_is_over_are_saved_once() -> None:
    tokens = DayTokens(day=DAY)
    tokens.settle(9, reserved=0)
    tokens.note_saved(9, day=DAY, saved=9)
    assert (tokens.unsaved, tokens.saved) == (0, 9)
    tokens.settle(9, reserved=0)
    tokens.begin_day("2026-11-28")  # while they are being saved
    tokens.note_saved(9, day=DAY, saved=18)
    assert (tokens.unsaved, tokens.saved) == (0, 0)


def test_a_removed_file_is_made_again_with_its_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = SharedUsage(tmp_path / "q"), SharedUsage(tmp_path / "q")
    mine, theirs = shared_tokens(one), shared_tokens(other)
    mine.reserve(50, per_day=100, unix_time=0.0)
    for file in (tmp_path / "q").iterdir():
        file.unlink()
    for usage in (one, other):
        usage.keep()
    assert "removed or damaged and are created again" in caplog.text
    theirs.learn()
    assert theirs.held_by_others == 50
    one.close()
    other.close()


@pytest.mark.parametrize("size", (0, 64, 100_000))
def test_a_truncated_file_is_shared_again(tmp_path: Path, size: int) -> None:
    one, other = SharedUsage(tmp_path / "q"), SharedUsage(tmp_path / "q")
    mine, theirs = shared_tokens(one), shared_tokens(other)
    mine.reserve(50, per_day=100, unix_time=0.0)
    os.truncate(next(tmp_path.glob("q/usage*")), size)
    for usage in (one, other):
        usage.keep()
    mine.reserve(10, per_day=100, unix_time=0.0)
    theirs.learn()
    assert theirs.held_by_others == 60
    assert one.count == other.count == 2
    one.close()
    other.close()


def test_a_file_that_cannot_be_made_again_is_tried_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "q"
    usage = SharedUsage(folder)
    tokens = shared_tokens(usage)
    shutil.rmtree(folder)
    folder.write_text("in the way")
    for _ in range(3):
        usage.keep()
        tokens.reserve(1, per_day=100, unix_time=0.0)
    assert caplog.text.count("cannot be checked") == 1
    folder.unlink()
    usage.keep()
    other = SharedUsage(folder)
    theirs = shared_tokens(other)
    theirs.learn()
    assert theirs.held_by_others == 3
    usage.close()
    other.close()


@pytest.mark.parametrize("value", (1e300, float("inf"), float("nan"), -1e300))
def test_a_damaged_time_blocks_a_key_for_a_minute_at_most(tmp_path: Path, value: float) -> None:
    one, other = SharedUsage(tmp_path / "q"), SharedUsage(tmp_path / "q")
    place = one.key("k")
    assert place is not None
    place.publish_empty_at(value)
    usage = Usage(tokens=shared_tokens(other))
    with suppress(APIError):
        take_request(usage, per_minute=60, now=1000.0)
    one.release("k")
    for second in range(60):
        take_request(usage, per_minute=60, now=1061.0 + second)
    one.close()
    other.close()


def test_any_max_tokens_can_be_published(tmp_path: Path) -> None:
    one, other = SharedUsage(tmp_path / "q"), SharedUsage(tmp_path / "q")
    mine, theirs = shared_tokens(one), shared_tokens(other)
    mine.reserve(10**30, per_day=100, unix_time=0.0)
    with pytest.raises(APIError):
        theirs.reserve(1, per_day=100, unix_time=0.0)
    mine.settle(0, reserved=10**30)
    theirs.reserve(1, per_day=100, unix_time=0.0)
    one.close()
    other.close()


def test_a_new_process_clears_what_dead_ones_left(tmp_path: Path) -> None:
    dead = SharedUsage(tmp_path / "q")
    shared_tokens(dead).reserve(100, per_day=100, unix_time=0.0)
    living = SharedUsage(tmp_path / "q")
    os.close(dead._lock)  # as the system does when a process ends
    one = SharedUsage(tmp_path / "q")
    assert one.count == living.count == 2
    shared_tokens(one).reserve(1, per_day=100, unix_time=0.0)
    living.close()
    one.close()


def test_a_key_without_a_place_counts_for_itself(tmp_path: Path) -> None:
    usage = SharedUsage(tmp_path / "q")
    places = [usage.key(f"{number}") for number in range(5_000)]
    assert 1_000 < len([place for place in places if place is not None]) <= 2_048
    lost = next(f"{number}" for number, place in enumerate(places) if place is None)
    for number in range(5_000):
        usage.release(f"{number}")
    assert usage.key(lost) is not None
    usage.close()


def test_without_the_file_each_process_gives_out_its_part() -> None:
    tokens = DayTokens(saved=100)
    tokens.reserve(40, per_day=200, unix_time=0.0, processes=2)
    tokens.reserve(20, per_day=200, unix_time=0.0, processes=2)
    with pytest.raises(APIError):
        tokens.reserve(1, per_day=200, unix_time=0.0, processes=2)


@pytest.mark.parametrize("reason", ("no folder in memory", "a file in the way"))
async def test_without_a_shared_file_each_worker_gives_out_its_part(
    upstream: FakeUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reason: str,
) -> None:
    monkeypatch.setattr(shared_files, "_MEMORY", tmp_path / "none")
    if reason == "a file in the way":
        (tmp_path / "shm").mkdir()
        monkeypatch.setattr(shared_files, "_MEMORY", tmp_path / "shm")
        folder = shared_files.memory_folder(tmp_path / "stellarchat.db", "-quotas")
        assert folder is not None
        for number in range(1, 65):
            (folder / f"process-{number}").mkdir()
    key = make_key(tmp_path, requests_per_minute=8)
    with caplog.at_level(logging.WARNING):
        async with two_workers(tmp_path, upstream.url, key) as clients:
            for client in clients:
                assert [await status_of(client, "/v1/embeddings", {}) for _ in range(5)] == [200] * 4 + [429]
    assert caplog.text.count("cannot share the quotas in use") == 2  # one a process


RACE = """
import sys, time
from pathlib import Path
from proxy.access.quotas import DayTokens, Usage, take_request
from proxy.access.shared_usage import SharedUsage
from proxy.errors import APIError

usage = SharedUsage(Path(sys.argv[1]))
tokens = DayTokens(day="2026-11-27", shared=usage.key("k"))
mine = Usage(tokens=tokens)
print("ready", flush=True)
sys.stdin.readline()
taken = 0
for _ in range(3000):
    try:
        take_request(mine, per_minute=1000, now=1000.0)
        taken += 1
    except APIError:
        pass
held = 0
for _ in range(20000):
    try:
        tokens.reserve(3, per_day=1000, unix_time=0.0)
        held += 3
    except APIError:
        pass
print(taken, held, flush=True)
sys.stdin.readline()
"""


async def raced(racers: list[asyncio.subprocess.Process]) -> list[bytes]:
    """Starts all at once when all are ready; the line that each prints at its end."""
    outputs = [racer.stdout for racer in racers if racer.stdout is not None]
    assert [await output.readline() for output in outputs] == [b"ready\n"] * len(racers)
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(b"go\n")
    return [await output.readline() for output in outputs]


async def test_processes_that_race_never_exceed_the_quota(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(shared_usage.__file__).parents[2])}
    racers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", RACE, str(tmp_path / "q")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        for _ in range(3)
    ]
    try:
        async with asyncio.timeout(60):
            told = [[int(word) for word in line.split()] for line in await raced(racers)]
    finally:
        for racer in racers:
            with suppress(ProcessLookupError):
                racer.kill()
            await racer.wait()
    assert 0 < sum(taken for taken, _ in told) <= 1000
    assert 0 < sum(held for _, held in told) <= 1002
