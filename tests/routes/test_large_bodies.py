"""Bodies that would hold up everybody: refused in words, or read beside the event loop."""

import asyncio
import gzip
import threading
from contextlib import AsyncExitStack
from itertools import product
from pathlib import Path

import pytest

from proxy.errors import APIError
from proxy.routes.large_bodies import LARGE_BYTES, off_the_loop, refuse_too_many_values
from tests.long import some_of
from tests.world import open_world

CHAT = "/v1/chat/completions"


def long_chat(count: int) -> bytes:
    said = ",".join(f'{{"role":"user","content":"g{number}"}}' for number in range(count))
    return ('{"model":"m","session_id":"x","messages":[' + said + "]}").encode()


TOO_MANY = {
    "numbers": b'{"session_id":"x","x":[' + b"0," * 300_000 + b"0]}",
    "objects": b'{"model":"m","messages":[' + b"{}," * 200_000 + b"{}]}",
    "messages": long_chat(100_000),
    "keys": b'{"model":"m"' + b"".join(b',"k%d":1' % number for number in range(300_000)) + b"}",
    "empty strings": b'{"x":[' + b'"",' * 300_000 + b'"\\\\"]}',
    "UTF-16": ('{"\u0122":[' + "0," * 300_000 + "0]}").encode("utf-16"),
}


@pytest.mark.parametrize(
    ("name", "path"),
    some_of(product(TOO_MANY, (CHAT, "/v1/responses", "/v1/messages", "/v1/sessions")), every=3),
)
async def test_more_values_than_any_context_holds_are_refused_in_words(tmp_path: Path, name: str, path: str) -> None:
    async with AsyncExitStack() as stack:
        world = await open_world(stack, tmp_path)
        response = await world.client.post(path, content=TOO_MANY[name])
        assert response.status_code == 413
        assert "JSON values" in response.json()["error"]["message"]


async def test_a_compressed_body_is_counted_as_what_it_holds(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        world = await open_world(stack, tmp_path)
        body = gzip.compress(TOO_MANY["numbers"])
        response = await world.client.post(CHAT, content=body, headers={"Content-Encoding": "gzip"})
        assert response.status_code == 413


async def test_an_endpoint_that_is_not_recorded_relays_it(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        world = await open_world(stack, tmp_path)
        response = await world.client.post("/v1/completions", content=TOO_MANY["numbers"])
        assert response.status_code != 413


async def test_commas_in_texts_are_not_values() -> None:
    await refuse_too_many_values(b'{"a":"' + b',[{\\"' * 300_000 + b'"}', limit=1000)
    with pytest.raises(APIError):
        await refuse_too_many_values(b'{"a":"' + b',[{\\"' * 300_000 + b'"' + b",0" * 1001, limit=1000)


async def test_a_large_body_is_read_in_another_thread_and_a_small_one_here() -> None:
    assert await off_the_loop(threading.current_thread, size=LARGE_BYTES) is threading.current_thread()
    assert await off_the_loop(threading.current_thread, size=LARGE_BYTES + 1) is not threading.current_thread()


async def test_others_have_their_turn_while_a_body_is_counted() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await refuse_too_many_values(b'["' + b"," * 2**21 + b'"]', limit=1000)
    task.cancel()
    assert turns > 2**21 / LARGE_BYTES
