"""Several upstreams behind one proxy: models, affinity, failover, and what each is told."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.setting_values import UpstreamAddress, upstream_addresses
from proxy.settings import ConfigurationError, load
from tests.fake_upstream import Call, FakeUpstream, Wire, fake_upstream, in_turn, never, paced, vllm_error, whole_json
from tests.serving import ServerProcess, running_proxy, settings_for

CHAT = "/v1/chat/completions"


def serves(upstream: FakeUpstream, *models: str) -> None:
    upstream.on("/v1/models", whole_json({"object": "list", "data": [{"id": m, "object": "model"} for m in models]}))


def chat(text: str = "hi", *, model: str = "m", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


@asynccontextmanager
async def client(folder: Path, *urls: str, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    settings = settings_for(folder, upstream_url=",".join(urls), **changes)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        yield http


@pytest.fixture
async def pair() -> AsyncIterator[tuple[FakeUpstream, FakeUpstream]]:
    async with fake_upstream() as one, fake_upstream() as two:
        serves(one, "m")
        serves(two, "m")
        yield one, two


def free_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_models_of_all_are_one_list_and_each_request_goes_where_its_model_is(
    pair: tuple[FakeUpstream, FakeUpstream], tmp_path: Path
) -> None:
    one, two = pair
    serves(one, "small", "shared")
    serves(two, "large", "shared")
    async with client(tmp_path, one.url, two.url) as http:
        listed = (await http.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["small", "shared", "large"]
        for model, upstream in (("small", one), ("large", two)):
            before = len(upstream.calls_to(CHAT))
            assert (await http.post(CHAT, json=chat(model=model))).status_code == 200
            assert len(upstream.calls_to(CHAT)) == before + 1
            assert (await http.post("/v1/embeddings", json={"model": model, "input": "x"})).status_code in (200, 404)
            assert len(upstream.calls_to("/v1/embeddings")) == 1


async def test_a_model_nobody_serves_is_a_404_of_vllm_s_shape(
    pair: tuple[FakeUpstream, FakeUpstream], tmp_path: Path
) -> None:
    serves(pair[1], "m", "n")
    message = "The model `nope` does not exist. Valid aliases: m, n."
    async with client(tmp_path, pair[0].url, pair[1].url) as http:
        for path in (CHAT, "/v1/completions", "/v1/embeddings", "/tokenize"):
            reply = await http.post(path, json=chat(model="nope"))
            error = {"message": message, "type": "NotFoundError", "param": "model", "code": 404}
            assert (reply.status_code, reply.json()) == (404, {"error": error})
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            reply = await http.post(path, json=chat(model="nope"))
            assert reply.status_code == 404
            assert reply.json() == {"type": "error", "error": {"type": "NotFoundError", "message": message}}


async def test_a_named_model_is_not_asked_for(tmp_path: Path, pair: tuple[FakeUpstream, FakeUpstream]) -> None:
    one, two = pair
    serves(one, "other")
    async with client(tmp_path, f"mine@{one.url}", f"theirs@{two.url}") as http:
        assert (await http.post(CHAT, json=chat(model="mine"))).status_code == 200
        assert len(one.calls_to(CHAT)) == 1
        assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["mine", "theirs"]
        assert not one.calls_to("/v1/models")


@pytest.mark.parametrize("named", (True, False))
async def test_a_conversation_stays_on_its_upstream(
    pair: tuple[FakeUpstream, FakeUpstream], tmp_path: Path, named: bool
) -> None:
    async with client(tmp_path, pair[0].url, pair[1].url) as http:
        for conversation in range(24):  # the ports are random: with few, all may have the same upstream
            headers = {"X-Session-Id": f"c{conversation}"} if named else {}
            messages: list[dict[str, Any]] = [{"role": "user", "content": f"conversation {conversation}"}]
            before = [len(each.calls_to(CHAT)) for each in pair]
            for turn in range(3):
                reply = await http.post(CHAT, json={"model": "m", "messages": messages}, headers=headers)
                messages += [reply.json()["choices"][0]["message"], {"role": "user", "content": f"turn {turn}"}]
            assert sorted(len(each.calls_to(CHAT)) - b for each, b in zip(pair, before, strict=True)) == [0, 3]
        assert all(each.calls_to(CHAT) for each in pair)


async def test_a_request_that_nobody_has_worked_on_goes_to_the_other(
    pair: tuple[FakeUpstream, FakeUpstream], tmp_path: Path
) -> None:
    one, two = pair
    one.on(CHAT, whole_json({"error": {"message": "full"}}, status=503))
    async with client(tmp_path, one.url, two.url, free_url()) as http:
        for number in range(12):
            reply = await http.post(CHAT, json=chat(f"question {number}"))
            assert reply.status_code == 200
    assert len(two.calls_to(CHAT)) == 12


async def test_a_request_that_was_answered_with_an_error_is_not_sent_twice(
    pair: tuple[FakeUpstream, FakeUpstream], tmp_path: Path
) -> None:
    for each in pair:
        each.on(CHAT, whole_json({"error": {"message": "bug"}}, status=500))
    async with client(tmp_path, pair[0].url, pair[1].url) as http:
        assert (await http.post(CHAT, json=chat())).status_code == 500
    assert sum(len(each.calls_to(CHAT)) for each in pair) == 1


async def test_a_caller_who_leaves_while_the_other_is_asked_leaves_nothing_open(
    pair: tuple[FakeUpstream, FakeUpstream], tmp_path: Path
) -> None:
    for each in pair:
        each.on(CHAT, in_turn(vllm_error(503), never()))
    async with client(tmp_path, pair[0].url, pair[1].url) as http:

        async def open_requests() -> list[int]:
            return [each["open_requests"] for each in (await http.get("/ready")).json()["upstreams"]["list"]]

        asked = [asyncio.create_task(http.post(CHAT, json=chat(f"question {number}"))) for number in range(8)]
        while sum(len(each.calls_to(CHAT)) for each in pair) < len(asked) + 2:
            await asyncio.sleep(0.02)
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)
        async with asyncio.timeout(5):
            while any(await open_requests()):
                await asyncio.sleep(0.05)


async def test_where_all_refuse_the_caller_gets_one_502(tmp_path: Path) -> None:
    async with client(tmp_path, free_url(), free_url()) as http:
        reply = await http.post(CHAT, json=chat())
        assert reply.status_code == 502
        assert reply.json()["error"]["code"] == "upstream_unreachable"
        assert (await http.get("/ready")).status_code == 503


async def test_ready_while_one_is_left(pair: tuple[FakeUpstream, FakeUpstream], tmp_path: Path) -> None:
    async with client(tmp_path, free_url(), pair[0].url) as http:
        assert (await http.get("/ready")).status_code == 200


async def test_upstream_is_told_the_conversation_unless_its_caller_tells(
    pair: tuple[FakeUpstream, FakeUpstream], tmp_path: Path
) -> None:
    one, _ = pair
    async with client(tmp_path, one.url) as http:
        asked: tuple[tuple[dict[str, Any], dict[str, str]], ...] = (
            (chat("a"), {}),
            (chat("a", temperature=0.5), {}),
            (chat("a"), {"X-User-Id": "ann"}),
            (chat("b"), {}),
            (chat("a"), {"X-Session-Id": "mine"}),
            (chat("a", session_id="mine"), {}),
            (chat("a", store=False), {}),
            (chat("a", session_id=None), {}),
        )
        for body, headers in asked:
            assert (await http.post(CHAT, json=body, headers=headers)).status_code == 200
    told = [call.headers.get("x-session-id") for call in one.calls_to(CHAT)]
    assert told[0] == told[1]
    assert len({told[0], told[2], told[3]}) == 3
    assert told[4:] == ["mine", None, told[0], told[0]]


async def test_forwarding_can_be_switched_off(pair: tuple[FakeUpstream, FakeUpstream], tmp_path: Path) -> None:
    async with client(tmp_path, pair[0].url, forward_session=False) as http:
        await http.post(CHAT, json=chat())
    assert "x-session-id" not in pair[0].calls_to(CHAT)[0].headers


async def test_a_reply_that_has_begun_is_not_asked_for_again(
    pair: tuple[FakeUpstream, FakeUpstream], tmp_path: Path
) -> None:
    async with client(tmp_path, pair[0].url, pair[1].url) as http:
        async with http.stream("POST", CHAT, json=chat(stream=True)) as reply:
            await anext(aiter(reply.aiter_bytes()))
        await asyncio.sleep(0.1)
    assert sum(len(each.calls_to(CHAT)) for each in pair) == 1


@pytest.mark.parametrize(
    ("text", "addresses"),
    (
        ("http://a:1", [("http://a:1", None)]),
        ("http://a:1, http://b:2/v1", [("http://a:1", None), ("http://b:2/v1", None)]),
        ("llama@http://a:1,qwen/q@https://b", [("http://a:1", "llama"), ("https://b", "qwen/q")]),
        ("http://user:p@a:1", [("http://user:p@a:1", None)]),
        ("m@http://user:p@a:1", [("http://user:p@a:1", "m")]),
    ),
)
def test_addresses(text: str, addresses: list[tuple[str, str | None]]) -> None:
    assert upstream_addresses(text) == tuple(UpstreamAddress(*each) for each in addresses)


@pytest.mark.parametrize("text", ("http://a,http://a", "a,b", "m@ftp://a", ",", "http://a,m@"))
def test_a_bad_list_names_the_setting(text: str) -> None:
    with pytest.raises(ConfigurationError, match="STELLARCHAT_UPSTREAM_URL"):
        load({"STELLARCHAT_UPSTREAM_URL": text}, environ={}, env_file=None)


@pytest.mark.parametrize("workers", ("1", "2"))
async def test_a_hangup_reads_the_list_again_and_streams_go_on(
    pair: tuple[FakeUpstream, FakeUpstream], tmp_path: Path, workers: str
) -> None:
    one, two = pair
    one.on(CHAT, paced(events=40, rate=20))
    (tmp_path / ".env").write_text(f"STELLARCHAT_UPSTREAM_URL={one.url}\n")
    server = ServerProcess(tmp_path, "")
    del server._environment["STELLARCHAT_UPSTREAM_URL"]
    await asyncio.to_thread(server.start, "--workers", workers)
    try:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=20) as http,
            http.stream("POST", CHAT, json=chat(stream=True)) as reply,
        ):
            (tmp_path / ".env").write_text(f"STELLARCHAT_UPSTREAM_URL={two.url}\n")
            os.kill(server.pid, signal.SIGHUP)
            async with asyncio.timeout(20):
                while not two.calls_to(CHAT):
                    await http.post(CHAT, json=chat())
            assert (await reply.aread()).endswith(b"data: [DONE]\n\n")
    finally:
        server.kill()


async def test_every_worker_chooses_alike_also_after_a_restart(tmp_path: Path) -> None:
    async with fake_upstream() as one, fake_upstream() as two, fake_upstream() as three:
        upstreams = (one, two, three)
        for each in upstreams:
            serves(each, "m")
        server = ServerProcess(tmp_path, ",".join(each.url for each in upstreams))
        for _ in range(2):
            await asyncio.to_thread(server.start, "--workers", "2")
            try:
                for number in range(60):  # a new connection each: any worker takes it
                    async with httpx.AsyncClient(base_url=server.url, timeout=20) as http:
                        reply = await http.post(CHAT, json=chat(f"conversation {number % 10}"))
                        assert reply.status_code == 200
            finally:
                await asyncio.to_thread(server.stop)
        answered_by: dict[str, set[str]] = {}
        for each in upstreams:
            for call in each.calls_to(CHAT):
                answered_by.setdefault(call.json()["messages"][0]["content"], set()).add(each.url)
        assert len(answered_by) == 10
        assert all(len(urls) == 1 for urls in answered_by.values())
        assert len({url for urls in answered_by.values() for url in urls}) > 1


async def test_however_many_ask_for_ready_upstream_is_asked_once(
    pair: tuple[FakeUpstream, FakeUpstream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair
    probes = 0

    async def slow_health(call: Call, wire: Wire) -> None:
        nonlocal probes
        probes += 1
        # On a busy machine 40 requests take longer than an answer is kept.
        monkeypatch.setattr("proxy.upstream.upstreams._CHECK_SECONDS", 60.0)
        await asyncio.sleep(0.3)
        await whole_json({})(call, wire)

    async with client(tmp_path, one.url) as http:
        assert (await http.get("/ready")).status_code == 200
        await asyncio.sleep(1.1)
        one.on("/health", slow_health)
        answers = await asyncio.gather(*(http.get("/ready") for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert probes == 1


async def test_a_long_silent_reply_of_the_only_upstream_does_not_make_it_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream.health._SILENCE_SECONDS", 0.1)
    monkeypatch.setattr("proxy.upstream.upstreams._CHECK_SECONDS", 0.0)
    async with fake_upstream() as one, client(tmp_path, one.url) as http:
        one.on(CHAT, never())
        waiting = asyncio.create_task(http.post(CHAT, json=chat()))
        while not one.calls_to(CHAT):
            await asyncio.sleep(0.01)
        shown: dict[str, Any] = {}
        async with asyncio.timeout(10):
            while shown.get("reason") is None:
                answer = await http.get("/ready")
                assert answer.status_code == 200
                shown = answer.json()["upstreams"]["list"][0]
                await asyncio.sleep(0.05)
        assert shown["reason"] == "open requests receive nothing"
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_an_upstream_that_is_gone_makes_it_not_ready_and_one_that_is_back_ready(tmp_path: Path) -> None:
    async with fake_upstream() as one, client(tmp_path, one.url) as http:
        assert (await http.get("/ready")).status_code == 200
        one.on("/health", whole_json({}, status=503))
        await asyncio.sleep(1.1)
        answer = await http.get("/ready")
        assert answer.status_code == 503
        assert "/health answered 503" in answer.json()["upstream"]
        one.on("/health", whole_json({}))
        await asyncio.sleep(1.1)
        assert (await http.get("/ready")).status_code == 200
