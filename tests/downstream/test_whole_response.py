import asyncio
import json
import socket
from pathlib import Path

import httpx
import pytest

from proxy.downstream import whole_response
from proxy.downstream.whole_response import Backlog
from tests.serving import running_proxy, settings_for
from tests.stored import chat, choice, exchange, opened, outcome, user

_MEGABYTE = 2**20
FORMS = ("anthropic", "responses")


def test_a_caller_has_one_large_answer_of_any_size_and_others_within_its_share() -> None:
    backlog = Backlog()
    assert backlog.has_room("ann", 500 * _MEGABYTE)
    backlog.add("ann", 20 * _MEGABYTE)
    assert backlog.has_room("ann", 12 * _MEGABYTE)
    assert not backlog.has_room("ann", 13 * _MEGABYTE)
    assert backlog.has_room("bob", 13 * _MEGABYTE)
    backlog.remove("ann", 20 * _MEGABYTE)
    assert backlog.has_room("ann", 40 * _MEGABYTE)


def test_all_callers_together_have_a_limit_beyond_one_each() -> None:
    backlog = Backlog()
    for number in range(8):
        backlog.add(f"user-{number}", 16 * _MEGABYTE)
    assert not backlog.has_room("user-0", 2 * _MEGABYTE)
    assert backlog.has_room("another", 2 * _MEGABYTE)


@pytest.mark.parametrize("form", FORMS)
async def test_answers_that_nobody_reads_are_bounded_and_others_get_theirs(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_response, "_CALLER_BYTES", 20 * _MEGABYTE)
    text = "x" * (12 * _MEGABYTE)
    settings = settings_for(tmp_path)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        with opened(tmp_path / "stellarchat.db") as connection:
            session_id = chat(connection, exchange([user(text)], user_id="ann"), outcome(choice("yes")))
        path = f"/v1/sessions/{session_id}/messages?format={form}"
        unread = await _ask_and_read_nothing(url, path)
        refused = await http.get(path, headers={"x-user-id": "ann"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_large_answers")
        assert (await http.get("/v1/sessions", headers={"x-user-id": "ann"})).status_code == 200
        unread.close()
        while (answer := await http.get(path, headers={"x-user-id": "ann"})).status_code == 503:
            await asyncio.sleep(0.05)
        assert answer.status_code == 200
        assert text in json.dumps(answer.json()["messages"])
        assert answer.headers["content-length"] == str(len(answer.content))


async def _ask_and_read_nothing(url: str, path: str) -> socket.socket:
    """A connection whose answer has begun to come, and stays unread."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, ("127.0.0.1", int(url.rpartition(":")[2])))
    await loop.sock_sendall(connection, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-User-Id: ann\r\n\r\n".encode())
    assert (await loop.sock_recv(connection, 12)) == b"HTTP/1.1 200"
    return connection
