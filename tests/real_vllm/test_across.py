"""A tool call that a real vLLM makes on one endpoint and gets its result on another; and the SDKs for Node."""

import asyncio
import json
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.real_vllm.test_equal import PATHS, TOOLS, VLLM, body_for, own_removed
from tests.serving import ServerProcess, server_process
from tests.test_node import FOLDER, run_node

JSON = dict[str, Any]
SHAPES = {"chat": "openai", "responses": "responses", "messages": "anthropic"}
RESULTS: dict[str, Any] = {
    "chat": lambda call_id: {"role": "tool", "tool_call_id": call_id, "content": "sun"},
    "responses": lambda call_id: {"type": "function_call_output", "call_id": call_id, "output": "sun"},
    "messages": lambda call_id: {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": call_id, "content": "sun"}],
    },
}
needs_node = pytest.mark.skipif(not (FOLDER / "node_modules").is_dir(), reason="the packages for Node are missing")


@pytest.fixture(scope="module")
def model() -> str:
    return str(httpx.get(f"{VLLM}/v1/models").json()["data"][0]["id"])


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with server_process(tmp_path, VLLM) as process:
        yield process


@pytest.mark.parametrize(("begun_on", "goes_on_with"), tuple(product(PATHS, PATHS)))
def test_a_call_made_on_one_endpoint_is_answered_on_another(
    server: ServerProcess, model: str, begun_on: str, goes_on_with: str
) -> None:
    with httpx.Client(base_url=server.url, timeout=300) as http:
        called = http.post(PATHS[begun_on], json=body_for(begun_on, model, stream=True, tools=True))
        session = called.headers["x-session-id"]

        def shown(form: str) -> list[JSON]:
            read: list[JSON] = http.get(f"/v1/sessions/{session}/messages", params={"format": form}).json()["messages"]
            return read

        call_id = shown("openai")[1]["tool_calls"][0]["id"]
        history = [*shown(SHAPES[goes_on_with]), RESULTS[goes_on_with](call_id)]
        key, limit = ("input", "max_output_tokens") if goes_on_with == "responses" else ("messages", "max_tokens")
        asked = {"model": model, "temperature": 0, limit: 12, "tools": TOOLS[goes_on_with]["tools"], key: history}
        after = http.post(PATHS[goes_on_with], json=asked)
        assert (after.status_code, after.headers["x-session-id"]) == (200, session), after.text
        assert [each["role"] for each in shown("openai")] == ["user", "assistant", "tool", "assistant"]
        for form in SHAPES.values():
            text = json.dumps(shown(form))
            assert text.count(call_id) == 2, form
            assert text.count('"sun"') == 1, form
        [branch] = http.get(f"/v1/sessions/{session}/branches").json()["branches"]
        assert branch["message_count"] == 4


@needs_node
async def test_the_node_sdks_give_the_same(server: ServerProcess, model: str) -> None:
    await run_node("dialogues.mjs", VLLM, model)  # both of the others find their prompts in the cache
    direct, relayed = [json.loads(await run_node("dialogues.mjs", url, model)) for url in (VLLM, server.url)]
    assert own_removed(relayed) == own_removed(direct)


@needs_node
async def test_node_reads_back_what_vllm_said(server: ServerProcess, model: str) -> None:
    await asyncio.wait_for(run_node("read_back_responses.mjs", server.url, model), 300)
