"""Reading back with OpenAI's SDK for Node, where it is installed: `npm ci --prefix tests/node`."""

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.fake_upstream import fake_upstream
from tests.history.test_stored_completions import store_many
from tests.serving import running_proxy, settings_for

FOLDER = Path(__file__).parent / "node"
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None or not (FOLDER / "node_modules").is_dir(), reason="Node or its packages are missing")
async def test_node_reads_back_every_operation(tmp_path: Path) -> None:
    store_many(tmp_path, 250)
    async with fake_upstream() as upstream, running_proxy(settings_for(tmp_path, upstream_url=upstream.url)) as url:
        assert NODE is not None
        process = await asyncio.create_subprocess_exec(
            NODE,
            str(FOLDER / "read_back.mjs"),
            f"{url}/v1",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), 120)
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, output.decode()
        assert "all of it was read back" in output.decode()
