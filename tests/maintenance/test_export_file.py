"""Exports of the server: on its own disk, few at a time, and in nobody's way."""

import asyncio
import base64
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from proxy.cli import cli
from proxy.demo import MODEL
from proxy.maintenance import export_file
from proxy.maintenance.export import Scope
from proxy.maintenance.export_file import ExportError, Exports
from proxy.storage.sqlite import connect
from tests.serving import running_proxy, settings_for
from tests.stored import opened, say

CHAT = "/v1/chat/completions"


async def test_a_large_export_needs_no_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    image = "data:image/png;base64," + base64.b64encode(os.urandom(6 * 2**20)).decode()
    content = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": image}}]
    async with (
        running_proxy(settings_for(tmp_path, demo=True)) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
        await client.post(CHAT, json=body, headers={"X-Session-Id": "s"})
        answer = await client.get("/v1/sessions/s/export")
    assert answer.status_code == 200
    assert len(answer.content) > 8 * 2**20
    assert not [name for name in os.listdir(tmp_path) if name.startswith("tmp")]


async def test_exports_of_a_locked_database_keep_no_chat_from_being_stored(tmp_path: Path) -> None:
    configured = settings_for(tmp_path, demo=True, commit_timeout_seconds=2.0)
    with opened(configured.database_path) as connection:
        session_id = say(connection, "hello")
    async with running_proxy(configured) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        with closing(sqlite3.connect(configured.database_path, isolation_level=None)) as locking:
            locking.execute("BEGIN EXCLUSIVE")
            exports = [asyncio.create_task(client.get(f"/v1/sessions/{session_id}/export")) for _ in range(12)]
            await asyncio.sleep(0.05)
            body = {"model": MODEL, "messages": [{"role": "user", "content": "keep me"}]}
            assert (await client.post(CHAT, json=body)).status_code == 200
            unsaved = [line for line in (await client.get("/metrics")).text.splitlines() if "_unsaved_total{" in line]
            assert unsaved
            assert all(line.endswith(" 0.0") for line in unsaved)
            locking.execute("ROLLBACK")
        answers = [answer.status_code for answer in await asyncio.gather(*exports)]
        assert set(answers) <= {200, 429, 503}
        assert 200 in answers


async def test_a_full_disk_refuses_exports_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        say(connection, "hello")
    exports = Exports()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ExportError, match="not enough disk space"):
        await exports.written("ann", partial(connect, path), Scope(), "jsonl", folder=tmp_path)
    monkeypatch.undo()
    with pytest.raises(ExportError, match="could not be written"):
        await exports.written("ann", partial(connect, path), Scope(), "jsonl", folder=tmp_path / "nowhere")
    monkeypatch.setattr(export_file, "_write", lambda *_: (_ for _ in ()).throw(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        await exports.written("ann", partial(connect, path), Scope(), "jsonl", folder=tmp_path)
    exports.close()


async def test_what_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_file, "_SECONDS", 0.0)
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        say(connection, "hello")
    exports = Exports()
    with pytest.raises(ExportError, match="too long"):
        await exports.written("ann", partial(connect, path), Scope(), "jsonl", folder=tmp_path)
    exports.close()


def test_only_its_owner_reads_an_exported_file(tmp_path: Path) -> None:
    path, file = tmp_path / "chat.db", tmp_path / "all.jsonl"
    with opened(path) as connection:
        say(connection, "hello")
    before = os.umask(0o022)
    try:
        result = CliRunner().invoke(cli, ["export", str(file)], env={"DATABASE_URL": f"sqlite:///{path}"})
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert result.exit_code == 0
    assert oct(file.stat().st_mode & 0o777) == "0o600"
