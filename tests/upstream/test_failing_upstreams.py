"""What callers see of an upstream that fails beside one that works; and that no request is worked on twice."""

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.fake_upstream import (
    Behaviour,
    Call,
    FakeUpstream,
    Wire,
    chat_chunk,
    chat_model,
    event,
    fake_upstream,
    hang_up,
    in_turn,
    never,
    until,
    vllm_error,
)
from tests.upstream.test_upstreams import CHAT, chat, client, free_url, serves

_CHATS = 24
_BEGUN = [event(chat_chunk(1, {"role": "assistant", "content": "begun"}))]


async def ended(http: httpx.AsyncClient, number: int, *, stream: bool) -> str:
    """How one chat ended for its caller."""
    text = ""
    async with http.stream("POST", CHAT, json=chat(f"conversation {number}", stream=stream)) as reply:
        try:
            async for piece in reply.aiter_text():
                text += piece
        except httpx.RemoteProtocolError:  # the connection ends without the stream's end, after an event that says why
            assert "upstream_timeout" in text
            return "cut"
    return "whole" if reply.status_code == 200 else str(reply.status_code)


def times_asked(*upstreams: FakeUpstream) -> Counter[bytes]:
    return Counter(call.body for each in upstreams for call in each.calls_to(CHAT))


# What an upstream does; what callers see whose chats go to it first; how often such a chat is sent to an upstream.
CASES: dict[str, tuple[Behaviour, str, int]] = {
    "hangs before the head": (never(), "504", 1),
    "hangs in the middle": (until(asyncio.Event(), _BEGUN, []), "cut", 1),
    "closes before the head": (hang_up(), "502", 1),
    "answers 500": (vllm_error(500), "500", 1),
    "answers 503": (vllm_error(503), "whole", 2),
    "flaps": (in_turn(*[vllm_error(503), chat_model] * _CHATS), "whole", 2),
}


@pytest.mark.parametrize("stream", (True, False))
@pytest.mark.parametrize("case", CASES)
async def test_only_what_the_failing_one_had_begun_fails(case: str, stream: bool, tmp_path: Path) -> None:
    behaviour, seen, most_asked = CASES[case]
    if case == "hangs in the middle" and not stream:
        pytest.skip("its answer is a stream")
    async with fake_upstream() as bad, fake_upstream() as good:
        serves(bad, "m")
        serves(good, "m")
        bad.on(CHAT, behaviour)
        times = {"response_timeout_seconds": 0.5, "read_timeout_seconds": 0.5}
        async with client(tmp_path, bad.url, good.url, **times) as http:
            ends = [await ended(http, number, stream=stream) for number in range(_CHATS)]
        asked, first_to_bad = times_asked(bad, good), len({call.body for call in bad.calls_to(CHAT)})
    assert Counter(ends) == Counter({"whole": _CHATS - first_to_bad}) + Counter({seen: first_to_bad})
    assert first_to_bad
    assert len(asked) == _CHATS
    assert max(asked.values()) == most_asked


@pytest.mark.parametrize("cut", ("closed", "reset"))
@pytest.mark.parametrize("stream", (True, False))
async def test_what_an_engine_worked_on_before_it_died_is_not_sent_again(
    cut: str, stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a connection that was kept: it is closed too late to have been idle."""
    monkeypatch.setattr("proxy.upstream.pool._IDLE_CLOSE_S", 0.1)

    async def dies(call: Call, wire: Wire) -> None:
        await asyncio.sleep(0.3)
        if cut == "reset":
            await wire.reset()
        else:
            await hang_up()(call, wire)

    async with fake_upstream() as bad, fake_upstream() as good:
        serves(bad, "m")
        serves(good, "m")
        bad.on(CHAT, in_turn(*[chat_model, dies] * _CHATS))
        async with client(tmp_path, bad.url, good.url) as http:
            ends = [await ended(http, number, stream=stream) for number in range(_CHATS)]
        asked = times_asked(bad, good)
        died = len(bad.calls_to(CHAT)) // 2
    assert died
    assert Counter(ends) == Counter({"whole": _CHATS - died, "502": died})
    assert set(asked.values()) == {1}


async def test_a_refused_connection_is_nobody_s_trouble(tmp_path: Path) -> None:
    async with fake_upstream() as good:
        serves(good, "m")
        async with client(tmp_path, f"m@{free_url()}", f"m@{good.url}") as http:
            assert {await ended(http, number, stream=True) for number in range(_CHATS)} == {"whole"}
        assert set(times_asked(good).values()) == {1}


async def test_health_that_is_good_does_not_bring_chats_back_to_a_stalled_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream.health._SILENCE_SECONDS", 0.2)
    monkeypatch.setattr("proxy.upstream.upstreams.PROBE_SECONDS", 0.1)
    async with fake_upstream() as stalled, fake_upstream() as good:
        serves(stalled, "m")
        serves(good, "m")
        stalled.on(CHAT, never())
        async with client(tmp_path, stalled.url, good.url) as http:
            waiting = [asyncio.create_task(ended(http, number, stream=True)) for number in range(_CHATS)]
            while (await http.get("/ready")).json()["upstreams"]["down"] != 1:
                await asyncio.sleep(0.05)
            left = len(stalled.calls_to(CHAT))
            assert left
            assert {await ended(http, number, stream=True) for number in range(_CHATS, 2 * _CHATS)} == {"whole"}
            assert len(stalled.calls_to(CHAT)) == left
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
