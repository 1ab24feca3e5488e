"""Quotas of keys, requests at a time, and what a caller is told of them."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.access.quotas import DayTokens, Usage, take_request, token_headers
from proxy.errors import APIError
from tests.access.test_keys import bearer, make_key, rows
from tests.chats import said
from tests.fake_upstream import (
    FakeUpstream,
    chat_chunk,
    chat_completion,
    event,
    head_bytes,
    never,
    raw,
    sse,
    until,
    whole_json,
)
from tests.serving import running_proxy, settings_for

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def test_a_minute_s_requests_are_let_in_and_the_next_is_told_when_to_come() -> None:
    usage = Usage()
    left = [dict(take_request(usage, per_minute=3, now=1000.0)) for _ in range(3)]
    assert [each[b"x-ratelimit-remaining-requests"] for each in left] == [b"2", b"1", b"0"]
    assert {each[b"x-ratelimit-limit-requests"] for each in left} == {b"3"}
    assert left[-1][b"x-ratelimit-reset-requests"] == b"60.000s"
    with pytest.raises(APIError) as refused:
        take_request(usage, per_minute=3, now=1000.0)
    assert refused.value.status == 429
    assert refused.value.headers is not None
    assert refused.value.headers["Retry-After"] == "20"
    take_request(usage, per_minute=3, now=1020.0)
    with pytest.raises(APIError):
        take_request(usage, per_minute=3, now=1020.1)


def test_processes_share_a_minute_s_requests_and_each_lets_one_in() -> None:
    for processes, in_turn in ((2, 3), (3, 2), (7, 1), (100, 1)):
        usage = Usage()
        told = [dict(take_request(usage, per_minute=6, now=1000.0, processes=processes)) for _ in range(in_turn)]
        assert told[-1][b"x-ratelimit-remaining-requests"] == b"0"
        assert told[-1][b"x-ratelimit-limit-requests"] == b"6"
        with pytest.raises(APIError) as refused:
            take_request(usage, per_minute=6, now=1000.0, processes=processes)
        assert refused.value.headers is not None
        assert refused.value.headers["Retry-After"] == str(10 * processes)
        take_request(usage, per_minute=6, now=1000.0 + 10 * processes, processes=processes)


def test_a_refused_request_does_not_count() -> None:
    usage = Usage()
    take_request(usage, per_minute=1, now=50.0)
    for second in range(51, 110):
        with pytest.raises(APIError):
            take_request(usage, per_minute=1, now=float(second))
    take_request(usage, per_minute=1, now=110.0)


def test_a_day_s_tokens_end_at_midnight_by_utc() -> None:
    noon = 1_795_305_600.0 - 1_795_305_600.0 % 86_400 + 43_200
    assert dict(token_headers(DayTokens(saved=30, unsaved=5, reserved=5), per_day=100, unix_time=noon)) == {
        b"x-ratelimit-limit-tokens": b"100",
        b"x-ratelimit-remaining-tokens": b"60",
        b"x-ratelimit-reset-tokens": b"43200.000s",
    }
    with pytest.raises(APIError) as refused:
        DayTokens(saved=100).reserve(1, per_day=100, unix_time=noon)
    assert refused.value.headers is not None
    assert refused.value.headers["Retry-After"] == "43200"
    assert refused.value.type == "tokens"


def test_what_is_held_for_others_is_refused_for_a_moment() -> None:
    tokens = DayTokens(saved=90)
    tokens.reserve(50, per_day=100, unix_time=0.0)
    with pytest.raises(APIError) as refused:
        tokens.reserve(1, per_day=100, unix_time=0.0)
    assert refused.value.headers is not None
    assert refused.value.headers["Retry-After"] == "1"


def test_another_day_begins_with_nothing_used() -> None:
    tokens = DayTokens(day="2026-11-26", saved=90, unsaved=9)
    tokens.begin_day("2026-11-26")
    assert tokens.used == 99
    tokens.begin_day("2026-11-27")
    assert tokens.used == 0


async def test_requests_per_minute_are_counted_and_told(upstream: FakeUpstream, tmp_path: Path) -> None:
    key, other = make_key(tmp_path, requests_per_minute=2), make_key(tmp_path)
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        for remaining in ("1", "0"):
            reply = await http.post(CHAT, json=BODY, headers=bearer(key))
            assert reply.status_code == 200
            assert reply.headers["x-ratelimit-limit-requests"] == "2"
            assert reply.headers["x-ratelimit-remaining-requests"] == remaining
        refused = await http.post(CHAT, json=BODY, headers=bearer(key))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert len(upstream.calls) == 2
        free = await http.post(CHAT, json=BODY, headers=bearer(other))
        assert free.status_code == 200
        assert "x-ratelimit-limit-requests" not in free.headers


async def use(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> int:
    return (await http.post(path, json=body)).status_code


@pytest.mark.parametrize(
    ("path", "body"),
    (
        (CHAT, BODY),
        (CHAT, {**BODY, "store": False}),
        (CHAT, {**BODY, "stream": True}),
        (CHAT, {**BODY, "stream": True, "store": False}),
        (CHAT + "/", BODY),
        ("/v1/completions", {"model": "m", "prompt": "x"}),
        ("/v1/responses", {"model": "m", "input": "x"}),
        ("/v1/messages", {"model": "m", "max_tokens": 5, "messages": BODY["messages"]}),
        ("/v1/embeddings", {"model": "m", "input": "x"}),
        ("/v1/anything", {"model": "m"}),
    ),
)
async def test_every_endpoint_is_charged_and_refused(
    upstream: FakeUpstream, tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    reply = chat_completion(1, [said("x")]) | {
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    }
    if not body.get("stream"):
        upstream.on("*", whole_json(reply))
    key = make_key(tmp_path, tokens_per_day=20)
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
    for _ in range(2):  # a restart forgets nothing
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, headers=bearer(key)) as http:
            statuses = [await use(http, path, body) for _ in range(4)]
            assert statuses[-1] == 429, statuses
            assert await use(http, CHAT, BODY) == 429
            assert (await http.get("/v1/sessions")).status_code == 200
            assert (await http.get("/v1/models")).status_code == 200
            assert (await http.delete("/v1/sessions/none")).status_code == 404
    assert len([call for call in upstream.calls if call.method == "POST"]) <= 4
    # What was used yesterday does not count.
    rows(tmp_path, "UPDATE key_tokens SET day = '2020-01-01'")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, headers=bearer(key)) as http:
        assert await use(http, CHAT, BODY) == 200
        assert rows(tmp_path, "SELECT COUNT(*) FROM sessions") is not None


@pytest.mark.parametrize("path", (CHAT, "/v1/completions", "/v1/embeddings"))
@pytest.mark.parametrize("limit", ({}, {"max_tokens": 100}, {"max_tokens": 100, "n": 2}))
async def test_20_at_once_use_the_quota_and_one_reply_at_most(
    upstream: FakeUpstream, tmp_path: Path, path: str, limit: dict[str, int]
) -> None:
    used = 105 * limit.get("n", 1)
    reply = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": used - 5, "total_tokens": used}}
    upstream.on(path, whole_json(reply))
    key = make_key(tmp_path, tokens_per_day=300)
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, headers=bearer(key)) as http:
        for _ in range(3):
            asked = (use(http, path, {**BODY, **limit}) for _ in range(20))
            assert set(await asyncio.gather(*asked)) <= {200, 429}
        assert len(upstream.calls_to(path)) * used <= 300 + used
        while await use(http, path, {**BODY, **limit}) == 200:  # in the end all of it can be used
            pass
        assert 300 <= len(upstream.calls_to(path)) * used < 300 + used


@pytest.mark.parametrize("store", (True, False))
async def test_a_cut_stream_is_charged_by_what_has_come(upstream: FakeUpstream, tmp_path: Path, store: bool) -> None:
    key = make_key(tmp_path, tokens_per_day=30)
    chunks = [event(chat_chunk(1, {"content": "x"})) for _ in range(20)]
    gate = asyncio.Event()
    upstream.on(CHAT, until(gate, chunks, []))
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, headers=bearer(key)) as http:
        statuses = []
        for _ in range(4):
            async with http.stream("POST", CHAT, json={**BODY, "stream": True, "store": store}) as reply:
                statuses.append(reply.status_code)
                seen = b""
                async for piece in reply.aiter_raw():
                    seen += piece
                    if reply.status_code == 200 and seen.count(b"\n\n") >= 20:
                        break
            while reply.status_code == 200 and any(call.left is None for call in upstream.calls):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
        assert statuses[0] == 200
        assert statuses[-1] == 429
        gate.set()


async def test_upstream_s_own_rate_limits_do_not_stand_beside_ours(upstream: FakeUpstream, tmp_path: Path) -> None:
    theirs = (("x-ratelimit-remaining-tokens", "9"), ("x-ratelimit-limit-requests", "8"), ("content-length", "2"))
    upstream.on("*", raw(head_bytes(200, theirs) + b"{}"))
    key, free = make_key(tmp_path, tokens_per_day=30), make_key(tmp_path)
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        ours = await http.post("/v1/embeddings", json={}, headers=bearer(key))
        assert ours.headers.get_list("x-ratelimit-remaining-tokens") == ["30"]
        assert "x-ratelimit-limit-requests" not in ours.headers
        passed = await http.post("/v1/embeddings", json={}, headers=bearer(free))
        assert passed.headers.get_list("x-ratelimit-remaining-tokens") == ["9"]


async def test_requests_at_a_time_are_limited_for_a_key_and_for_the_server(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    ann, bob, eve = make_key(tmp_path), make_key(tmp_path, user_id="bob"), make_key(tmp_path, user_id="eve")
    gate = asyncio.Event()
    upstream.on(CHAT, until(gate, [b"data: {}\n\n"], [b"data: [DONE]\n\n"]))
    settings = settings_for(
        tmp_path, upstream_url=upstream.url, auth="required", key_concurrency_limit=2, concurrency_limit=3
    )
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        body = {**BODY, "stream": True}
        open_ = [asyncio.create_task(http.post(CHAT, json=body, headers=bearer(key))) for key in (ann, ann, bob)]
        await upstream.until(lambda: len(upstream.calls) == 3)
        for key in (ann, eve):  # one by its own limit, one by the server's
            refused = await http.post(CHAT, json=body, headers=bearer(key))
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
        assert (await http.get("/health")).status_code == 200
        gate.set()
        assert [reply.status_code for reply in await asyncio.gather(*open_)] == [200] * 3
        assert (await http.post(CHAT, json=body, headers=bearer(ann))).status_code == 200


def has_come(upstream: FakeUpstream, count: int) -> bool:
    return len(upstream.calls_to("/v1/embeddings")) == count


def has_left(upstream: FakeUpstream, number: int) -> bool:
    return upstream.calls_to("/v1/embeddings")[number].left is not None


async def test_a_caller_who_leaves_gives_its_place_back(upstream: FakeUpstream, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    upstream.on("/v1/embeddings", never())
    upstream.on("/v1/completions", sse([b"data: {}\n\n"], die_after=1))
    settings = settings_for(
        tmp_path, upstream_url=upstream.url, auth="required", key_concurrency_limit=1, concurrency_limit=1
    )
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, headers=bearer(key)) as http:
        for number in range(3):
            asked = asyncio.create_task(http.post("/v1/embeddings", json={}))
            await upstream.until(partial(has_come, upstream, number + 1))
            asked.cancel()
            await upstream.until(partial(has_left, upstream, number))
            with pytest.raises(httpx.RemoteProtocolError):
                await http.post("/v1/completions", json={})
        assert (await http.post(CHAT, json=BODY)).status_code == 200


async def test_a_body_that_says_it_is_too_long_is_refused_at_once(upstream: FakeUpstream, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, upstream_url=upstream.url, body_limit_bytes=1024)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        for path in (CHAT, "/v1/embeddings", "/v1/sessions"):
            refused = await http.post(path, content=b" " * 1025, headers={"Content-Type": "application/json"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")
        assert upstream.calls == []
        assert (await http.post(CHAT, json=BODY)).status_code == 200
