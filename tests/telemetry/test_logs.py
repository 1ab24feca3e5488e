"""Logs: a line a request, in the form of all other lines, rotated, without what was said."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.demo import MODEL
from proxy.telemetry.logs import LinesFile
from tests.serving import child_of, server_process, until


def lines_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in folder.glob("*.log*") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("sample", ("1", "0"))
def test_a_chat_and_a_request_are_a_line_each_and_hold_no_content(tmp_path: Path, sample: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "top-secret words"}]}
    headers = {"X-Request-Id": "r1", "X-User-Id": "ann", "Authorization": "Bearer sk-secret"}
    environment = {"STELLARCHAT_ACCESS_LOG_SAMPLE": sample, "STELLARCHAT_LOG_LEVEL": "debug"}
    with server_process(tmp_path, "http://127.0.0.1:9", "--demo", **environment) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers)
        httpx.get(f"{server.url}/v1/search?q=top-secret")
        assert server.stop() == 0
    lines = lines_in(tmp_path / "logs")
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    assert any(line["logger"].startswith("uvicorn") for line in lines)
    chats = [line for line in lines if line["message"] == "chat"]
    requests = [line for line in lines if line["message"] == "request"]
    assert "secret" not in json.dumps([line for line in lines if line["logger"].startswith("stellarchat")])
    if sample == "0":
        assert chats == requests == []
        return
    (chat,) = chats
    assert (chat["request_id"], chat["user_id"], chat["model"], chat["status"]) == ("r1", "ann", MODEL, "completed")
    assert chat["session_id"] == answer.headers["x-session-id"]
    assert chat["duration_ms"] >= 0
    assert {(line["path"], line["status"]) for line in requests} == {("/v1/search", 200)}


def test_that_a_worker_died_is_in_the_log_and_what_uvicorn_says_at_its_start_is_not_on_the_console(
    tmp_path: Path,
) -> None:
    with server_process(tmp_path, "http://127.0.0.1:9", "--demo", "--workers", "2") as server:
        os.kill(child_of(server.pid), signal.SIGKILL)
        until(lambda: any("died" in line["message"] for line in lines_in(tmp_path / "logs")))
        until(lambda: len([line for line in lines_in(tmp_path / "logs") if "startup complete" in line["message"]]) == 3)
        # The supervisor's and the two workers'; the new worker goes on where the dead one stopped.
        names = {path.name for path in (tmp_path / "logs").glob("*.log")}
        assert names == {f"stellarchat-{number}.log" for number in (1, 2, 3)}
        assert server.stop() == 0
    assert not any("uvicorn" in line for line in server.output)


def test_a_full_file_is_put_aside(tmp_path: Path) -> None:
    handler = LinesFile(tmp_path / "a.log", maxBytes=300, backupCount=2, encoding="utf-8")
    try:
        for number in range(12):
            handler.write_lines([{"number": number, "text": "x" * 80}])
    finally:
        handler.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert all(path.stat().st_size <= 300 for path in tmp_path.iterdir())
    assert max(line["number"] for line in lines_in(tmp_path)) == 11
