"""Two proxies that are each other's upstream: a request ends where it comes back to the one that sent it first."""

import socket
from pathlib import Path

import httpx
import pytest

from tests.serving import server_process, until

CHAT = {"model": "x", "messages": [{"role": "user", "content": "Hello"}]}
PATHS = ("chat/completions", "responses", "messages", "completions", "embeddings")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize("workers", ("1", "2"))
def test_a_request_that_comes_back_is_refused(tmp_path: Path, workers: str) -> None:
    port = free_port()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = server_process(tmp_path / "a", f"http://127.0.0.1:{port}", STELLARCHAT_QUIET="off")
    with first as one, server_process(tmp_path / "b", f"{one.url}/v1", "--port", str(port), "--workers", workers):
        for path in PATHS:
            response = httpx.post(f"{one.url}/v1/{path}", json=CHAT, timeout=60)
            assert response.status_code == 508, path
            assert "leads back" in response.text
        assert httpx.get(f"{one.url}/v1/models", timeout=60).status_code == 508
        assert len(httpx.get(f"{one.url}/v1/sessions", timeout=60).json()["sessions"]) <= len(PATHS)
        until(lambda: any("leads back to this proxy" in line for line in one.output), seconds=60)


def test_a_caller_may_use_an_id_twice(tmp_path: Path) -> None:
    with server_process(tmp_path, "http://127.0.0.1:9", "--demo") as server:
        first = httpx.post(f"{server.url}/v1/chat/completions", json={**CHAT, "model": "stellarchat-demo"})
        again = {"X-Request-Id": first.headers["x-request-id"]}
        body = {**CHAT, "model": "stellarchat-demo"}
        for _ in range(2):
            assert httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=again).status_code == 200
