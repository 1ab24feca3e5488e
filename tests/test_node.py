"""OpenAI's and Anthropic's SDKs for Node, where they are installed: `npm ci --prefix tests/node`."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.dialect_upstream import every_dialect
from tests.fake_upstream import fake_upstream, vllm_error
from tests.history.test_stored_completions import store_many
from tests.serving import running_proxy, settings_for

FOLDER = Path(__file__).parent / "node"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    NODE is None or not (FOLDER / "node_modules" / "@anthropic-ai").is_dir(), reason="Node or its packages are missing"
)


async def run_node(script: str, *arguments: str) -> str:
    assert NODE is not None
    process = await asyncio.create_subprocess_exec(
        NODE, str(FOLDER / script), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 120)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_node_reads_back_every_operation(tmp_path: Path) -> None:
    store_many(tmp_path, 250)
    async with fake_upstream() as upstream, running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
        assert "all of it was read back" in await run_node("read_back.mjs", f"{url}/v1")


async def test_node_reads_back_responses_and_messages(tmp_path: Path) -> None:
    async with fake_upstream() as upstream, running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
        for path in ("/v1/responses", "/v1/messages"):
            upstream.on(path, every_dialect())
        upstream.on("*", vllm_error(404))
        assert "all of it was read back" in await run_node("read_back_responses.mjs", url, "m")


async def test_the_node_sdks_cannot_tell_the_proxy_from_its_upstream(tmp_path: Path) -> None:
    async with fake_upstream() as direct, fake_upstream() as behind:
        for upstream in (direct, behind):
            for path in ("/v1/chat/completions", "*"):
                upstream.on(path, every_dialect())
        async with running_proxy(settings_for(tmp_path, upstream_url=behind.url)) as url:
            relayed = json.loads(await run_node("dialogues.mjs", url, "m"))
        assert relayed == json.loads(await run_node("dialogues.mjs", direct.url, "m"))
        assert [call.path for call in behind.calls] == [call.path for call in direct.calls]
        assert json.dumps(relayed).count('"name": "tool"') > 6  # each of the dialogues calls it
