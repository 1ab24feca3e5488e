"""Logs: a line a request, in the form of all other lines, rotated, without what was said."""

import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.demo import MODEL
from proxy.settings import Settings
from proxy.telemetry import logs
from proxy.telemetry.logs import LinesFile
from tests.serving import child_of, running_proxy, server_process, settings_for, until


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
        assert names == {f"{name}-{number}.log" for name in ("audit", "stellarchat") for number in (1, 2, 3)}
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


def settled(tmp_path: Path, **given: Any) -> Settings:
    return settings_for(tmp_path, log_file_bytes=20_000, **given)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root, audit = logging.getLogger(), logging.getLogger(logs.AUDIT)
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [*root.handlers, *audit.handlers]:
        if handler not in handlers:
            handler.close()
    root.handlers, audit.handlers = handlers, []
    root.setLevel(level)


@pytest.mark.parametrize("long", ("x" * 2**21, "模" * 2**20, "\ud800" * 5000))
@pytest.mark.parametrize("where", ("message", "argument", "field", "object", "exception"))
def test_no_line_is_longer_than_a_line_and_none_is_lost(tmp_path: Path, long: str, where: str) -> None:
    logs.configure(settled(tmp_path))
    log = logging.getLogger("proxy.somewhere")
    log.warning("before")
    if where == "exception":
        log.error("it failed", exc_info=ValueError(long))
    elif where == "field":
        log.warning("a field", extra={"model": long})
    elif where == "object":
        log.warning("an object", extra={"model": [long, {long: 1}]})
    elif where == "argument":
        log.warning("it is called %s", long)
    else:
        log.warning(long)
    logging.getLogger(logs.AUDIT).info("an admin did it")
    assert len(lines_in(tmp_path / "logs")) == 3
    assert sum(path.stat().st_size for path in (tmp_path / "logs").glob("*")) < 250_000


def test_what_admins_did_is_not_rotated_away(tmp_path: Path) -> None:
    logs.configure(settled(tmp_path))
    logging.getLogger(logs.AUDIT).info("an admin did it")
    for number in range(3000):
        logging.getLogger("proxy.somewhere").warning("line %d", number)
    said = [json.loads(line)["message"] for line in (tmp_path / "logs" / "audit.log").read_text().splitlines()]
    assert said == ["an admin did it"]
    others = [line for line in lines_in(tmp_path / "logs") if line["logger"] == logs.AUDIT]
    assert len(others) == 1


def test_only_their_owner_reads_log_files(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for name in ("stellarchat.log", "stellarchat.log.1"):
        (folder / name).touch(mode=0o644)
    logs.configure(settled(tmp_path))
    for number in range(600):
        logging.getLogger("proxy.somewhere").warning("line %d", number)
    logging.getLogger(logs.AUDIT).info("an admin did it")
    files = list(folder.iterdir())
    assert len(files) > 3
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}


async def test_a_model_of_a_megabyte_is_a_line_like_any_other(tmp_path: Path) -> None:
    configured = settled(tmp_path, demo=True)
    logs.configure(configured)
    async with running_proxy(configured) as url, httpx.AsyncClient(base_url=url) as client:
        for _ in range(3):
            body = {"model": "x" * 2**20, "messages": [{"role": "user", "content": "hi"}], "user": "u" * 100}
            await client.post("/v1/chat/completions", json=body)
            await client.get("/v1/" + "y" * 20_000)
    lines = [line for line in lines_in(tmp_path / "logs") if line["logger"] == "stellarchat.access"]
    assert len(lines) == 6
    assert max(len(json.dumps(line)) for line in lines) < 2000
