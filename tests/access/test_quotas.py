"""Quotas of keys, requests at a time, and what a caller is told of them."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.access.quotas import Usage, check_tokens, start_of_day, take_request
from proxy.errors import APIError
from tests.access.test_keys import bearer, make_key, rows
from tests.fake_upstream import FakeUpstream, fake_upstream, never, sse, until
from tests.serving import running_proxy, settings_for

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with fake_upstream() as fake:
        yield fake


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


def test_a_refused_request_does_not_count() -> None:
    usage = Usage()
    take_request(usage, per_minute=1, now=50.0)
    for second in range(51, 110):
        with pytest.raises(APIError):
            take_request(usage, per_minute=1, now=float(second))
    take_request(usage, per_minute=1, now=110.0)


def test_a_day_s_tokens_end_at_midnight_by_utc() -> None:
    noon = 1_795_305_600.0 - 1_795_305_600.0 % 86_400 + 43_200
    told = dict(check_tokens(Usage(tokens=40), per_day=100, unix_time=noon))
    assert told == {
        b"x-ratelimit-limit-tokens": b"100",
        b"x-ratelimit-remaining-tokens": b"60",
        b"x-ratelimit-reset-tokens": b"43200.000s",
    }
    with pytest.raises(APIError) as refused:
        check_tokens(Usage(tokens=100), per_day=100, unix_time=noon)
    assert refused.value.headers is not None
    assert refused.value.headers["Retry-After"] == "43200"
    assert refused.value.type == "tokens"


def test_the_day_s_first_identifier_is_not_greater_than_any_of_the_day() -> None:
    assert start_of_day(1_645_557_742.0) == f"{1_645_488_000_000:012x}"[:8] + "-4c00"  # 2022-02-22T00:00:00Z
    assert start_of_day(1_645_488_000.0) == start_of_day(1_645_574_399.9)


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


async def test_a_day_s_tokens_are_counted_from_what_was_recorded(
    upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.access.middleware._TOKENS_SECONDS", 0.0)
    key = make_key(tmp_path, tokens_per_day=20)  # a reply of the fake upstream is 12
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        for remaining in ("20", "8"):
            reply = await http.post(CHAT, json=BODY, headers=bearer(key))
            assert (reply.status_code, reply.headers["x-ratelimit-remaining-tokens"]) == (200, remaining)
        refused = await http.post(CHAT, json=BODY, headers=bearer(key))
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
        # What was said yesterday does not count.
        rows(tmp_path, "UPDATE exchanges SET exchange_id = '00000000' || substr(exchange_id, 9)")
        assert (await http.post(CHAT, json=BODY, headers=bearer(key))).status_code == 200


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
