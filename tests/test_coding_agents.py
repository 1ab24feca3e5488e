"""Codex and Claude Code as npm installs them, with and without the proxy: a task with a tool call, and one more turn.

Run by hand: `npm install --prefix FOLDER @openai/codex @anthropic-ai/claude-code`, and STELLARCHAT_AGENTS=FOLDER.
"""

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.dialect_upstream import events_text, message_events, message_of, response_events, response_of
from tests.fake_upstream import Call, FakeUpstream, Wire, fake_upstream, sse, whole_json
from tests.serving import running_proxy, settings_for

FOLDER = os.environ.get("STELLARCHAT_AGENTS", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="STELLARCHAT_AGENTS names no folder")

JSON = dict[str, Any]
SAID = "hello-from-tool"
CONFIG = """
model = "m"
model_provider = "stellarchat"
approval_policy = "never"
[model_providers.stellarchat]
name = "StellarChat"
base_url = "{url}/v1"
wire_api = "responses"
"""
# What differs between two runs that say the same.
_OWN = re.compile(
    r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{16,64}|\b(?:resp|msg|rs|fc|call|toolu)_(?:up)?\d+\b|(?:answer|thought) \d+"
    r"|cch=[0-9a-f]+|Chunk ID: \w+|Wall time: [\d.]+|\d{10,}|http://127\.0\.0\.1:\d+"
)


async def model(call: Call, wire: Wire) -> None:
    """Calls the agent's shell once, then talks."""
    request = call.json() if call.body else {}
    names = [tool.get("name") for tool in request.get("tools", ())]
    if call.path == "/v1/responses":
        shell = next((name for name in ("shell_command", "exec_command") if name in names), None)
        response = response_of(call.number, request)
        if shell and not any(str(item.get("type", "")).endswith("_output") for item in request["input"]):
            arguments = json.dumps({"command" if shell == "shell_command" else "cmd": f"echo {SAID}"})
            said = {"type": "function_call", "id": f"fc_{call.number}", "call_id": f"call_{call.number}", "name": shell}
            response["output"][1] = {**said, "arguments": arguments, "status": "completed"}
        await sse(events_text(response_events(response)))(call, wire)
    elif call.path == "/v1/messages":
        message = message_of(call.number, request)
        message["content"] = message["content"][1:]
        if "Bash" in names and "tool_result" not in json.dumps(request["messages"]):
            given = {"command": f"echo {SAID}", "description": "say hello"}
            message["content"] = [{"type": "tool_use", "id": f"toolu_{call.number}", "name": "Bash", "input": given}]
            message["stop_reason"] = "tool_use"
        await sse(events_text(message_events(message)))(call, wire)
    else:
        await whole_json({"object": "list", "data": []})(call, wire)


async def run(folder: Path, home: Path, *command: str, **environment: str) -> None:
    process = await asyncio.create_subprocess_exec(
        str(Path(FOLDER) / "node_modules" / ".bin" / command[0]),
        *command[1:],
        cwd=folder,
        env={**os.environ, "HOME": str(home), **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 200)
    assert process.returncode == 0, output.decode()


async def codex(url: str, folder: Path, home: Path) -> None:
    (home / "config.toml").write_text(CONFIG.format(url=url))
    options = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    await run(folder, home, "codex", "exec", *options, "say hello with the tool", CODEX_HOME=str(home))
    await run(folder, home, "codex", "exec", "resume", "--last", *options, "once more", CODEX_HOME=str(home))


async def claude(url: str, folder: Path, home: Path) -> None:
    more = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_AUTH_TOKEN": "any", "CLAUDE_CONFIG_DIR": str(home)}
    more["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] = "1"
    options = ("--model", "m", "--allowedTools", "Bash")
    await run(folder, home, "claude", "-p", "say hello with the tool", *options, **more)
    await run(folder, home, "claude", "-p", "once more", "--continue", *options, **more)


def sent(upstream: FakeUpstream, home: Path) -> list[str]:
    """What the agent sent, without what every run has of its own."""
    bodies = [(call.path, call.json()) for call in upstream.calls if call.method == "POST"]
    return [_OWN.sub("*", json.dumps(body, sort_keys=True).replace(str(home), "~")) for body in bodies]


@pytest.mark.parametrize("agent", (codex, claude))
async def test_a_task_is_one_session_and_nothing_that_is_sent_changes(
    tmp_path: Path, agent: Callable[[str, Path, Path], Awaitable[None]]
) -> None:
    work, with_proxy, without = (tmp_path / name for name in ("work", "with", "without"))
    for folder in (work, with_proxy, without):
        folder.mkdir()
    async with fake_upstream() as direct, fake_upstream() as behind:
        for upstream in (direct, behind):
            upstream.on("*", model)
        async with (
            running_proxy(settings_for(tmp_path, upstream_url=behind.url)) as url,
            httpx.AsyncClient(base_url=url) as http,
        ):
            await agent(url, work, with_proxy)
            [session] = (await http.get("/v1/sessions")).json()["sessions"]
            shown = await http.get(f"/v1/sessions/{session['session_id']}/messages?format=openai&limit=100")
            talk = [each for each in shown.json()["messages"] if each["role"] not in ("system", "developer")]
            assert [each["role"] for each in talk[-5:]] == ["assistant", "tool", "assistant", "user", "assistant"]
            assert SAID in talk[-5]["tool_calls"][0]["function"]["arguments"]
            assert SAID in json.dumps(talk[-4]["content"])
            exchanges = (await http.get(f"/v1/sessions/{session['session_id']}/exchanges")).json()["exchanges"]
            assert [each["status"] for each in exchanges] == ["completed"] * 3
            assert all(each["parameters"]["tools"] for each in exchanges)
        await agent(direct.url, work, without)
        assert sent(behind, with_proxy) == sent(direct, without)
