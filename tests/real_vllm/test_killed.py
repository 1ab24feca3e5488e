"""A real vLLM that is killed while it answers: what had come is kept, and the rest of the stream ends with an error.

It needs the engine's process group, STELLARCHAT_LIVE_PID, and leaves it dead; run it alone and last.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import ServerProcess, server_process, until

VLLM, GROUP = os.environ.get("STELLARCHAT_LIVE_URL", ""), os.environ.get("STELLARCHAT_LIVE_PID", "")
if not (VLLM and GROUP):
    pytest.skip("STELLARCHAT_LIVE_PID names no engine", allow_module_level=True)

JSON = dict[str, Any]
ASKED: dict[str, JSON] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Tell a very long story."}], "max_tokens": 400},
    "/v1/responses": {"input": "Tell a very long story.", "max_output_tokens": 400},
    "/v1/messages": {"messages": [{"role": "user", "content": "Tell a very long story."}], "max_tokens": 400},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with server_process(tmp_path, VLLM) as process:
        yield process


def test_what_had_come_is_kept_on_each_endpoint(server: ServerProcess) -> None:
    model = httpx.get(f"{VLLM}/v1/models").json()["data"][0]["id"]
    with httpx.Client(base_url=server.url, timeout=120) as http:
        streams = {
            path: http.stream("POST", path, json={"model": model, "stream": True, "temperature": 0, **body})
            for path, body in ASKED.items()
        }
        replies = {path: stream.__enter__() for path, stream in streams.items()}
        came = dict.fromkeys(ASKED, "")
        pieces = {path: reply.iter_text() for path, reply in replies.items()}
        while not all(text.count("data: {") > 12 for text in came.values()):
            for path, piece in pieces.items():
                came[path] += next(piece)
        time.sleep(1.5)  # what has streamed is written down once a second
        os.killpg(int(GROUP), signal.SIGKILL)
        for path, piece in pieces.items():
            with suppress(httpx.HTTPError):
                for text in piece:
                    came[path] += text
        for path, reply in replies.items():
            assert '"error"' in came[path].strip().splitlines()[-1], path
            session = reply.headers["x-session-id"]
            shown = f"/v1/sessions/{session}"

            def is_ended(shown: str = shown) -> bool:
                [exchange] = http.get(f"{shown}/exchanges").json()["exchanges"]
                return bool(exchange["status"] != "in_progress")

            until(is_ended)
            [exchange] = http.get(f"{shown}/exchanges").json()["exchanges"]
            assert (exchange["status"], exchange["finish_reason"]) == ("incomplete", None), path
            said = http.get(f"{shown}/messages", params={"format": "openai"}).json()["messages"][-1]
            assert said["role"] == "assistant"
            assert said["content"] == text_of(path, came[path])
        events = events_of(came["/v1/responses"])
        response_id, half = events[0]["response"]["id"], len(events) // 2
        rest = http.get(f"/v1/responses/{response_id}", params={"stream": "true", "starting_after": half - 1})
        numbers = [event["sequence_number"] for event in events_of(rest.text)]
        assert numbers[:-1] == [event["sequence_number"] for event in events[half:-1]]
        assert events_of(rest.text)[-1]["type"] == "error"
        assert http.get(f"/v1/responses/{response_id}").json()["status"] == "incomplete"


def events_of(text: str) -> list[JSON]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def text_of(path: str, stream: str) -> str:
    pieces = []
    for event in events_of(stream):
        if path == "/v1/chat/completions":
            pieces += [choice["delta"].get("content") or "" for choice in event.get("choices", ())]
        elif event.get("type") == "response.output_text.delta":
            pieces.append(event["delta"])
        elif event.get("type") == "content_block_delta":
            pieces.append(event["delta"]["text"])
    return "".join(pieces)
