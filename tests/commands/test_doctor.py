"""`stellarchat doctor` names the cause of what is broken, and the next step."""

import asyncio
import json
import os
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from proxy.cli import cli
from tests.fake_upstream import fake_upstream, whole_json

Findings = dict[str, dict[str, Any]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Findings]:
    monkeypatch.chdir(tmp_path)

    def run(**environment: str) -> Findings:
        result = CliRunner().invoke(cli, ["doctor", "--json"], env=environment)
        report = json.loads(result.output)
        assert result.exit_code == (0 if report["ok"] else 1)
        return {each["about"]: each for each in report["findings"]}

    return run


def wrong(finding: dict[str, Any], *texts: str) -> bool:
    shown = f"{finding['message']} {finding['advice']}"
    return not finding["is_well"] and bool(finding["advice"]) and all(text in shown for text in texts)


def test_an_upstream_that_is_not_there(doctor: Callable[..., Findings]) -> None:
    found = doctor(STELLARCHAT_UPSTREAM_URL="http://127.0.0.1:9")
    assert wrong(found["upstream"], "http://127.0.0.1:9", "cannot be reached", "start vLLM")


def test_an_unknown_host(doctor: Callable[..., Findings]) -> None:
    assert wrong(doctor(STELLARCHAT_UPSTREAM_URL="http://no.such.host.invalid:1")["upstream"], "no.such.host.invalid")


@pytest.mark.parametrize("value", ("nonsense", "http://127.0.0.1:8000/v1/chat/completions"))
def test_a_bad_setting(doctor: Callable[..., Findings], value: str) -> None:
    assert wrong(doctor(STELLARCHAT_UPSTREAM_URL=value)["settings"], "STELLARCHAT_UPSTREAM_URL")


def test_a_file_of_another_program(doctor: Callable[..., Findings], tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    assert wrong(doctor(DATABASE_URL="sqlite:///other.db")["database"], "another program")


def test_a_file_that_is_no_database(doctor: Callable[..., Findings], tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, but a text that is long enough to be looked into" * 20)
    assert wrong(doctor(DATABASE_URL="sqlite:///text.db")["database"], "not an SQLite database")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(doctor: Callable[..., Findings], tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert wrong(doctor(DATABASE_URL="sqlite:///locked/x.db")["database"], "cannot be made")


def test_a_log_folder_that_is_a_file(doctor: Callable[..., Findings], tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    assert wrong(doctor(STELLARCHAT_LOG_DIR="logs")["logs"], "STELLARCHAT_LOG_DIR")


def test_an_open_address_without_a_key(doctor: Callable[..., Findings]) -> None:
    assert wrong(doctor(STELLARCHAT_HOST="0.0.0.0")["keys"], "stellarchat keys create")
    assert wrong(doctor(STELLARCHAT_HOST="0.0.0.0", STELLARCHAT_AUTH="off")["keys"], "STELLARCHAT_AUTH")


def test_an_address_that_this_machine_has_not(doctor: Callable[..., Findings]) -> None:
    assert wrong(doctor(STELLARCHAT_HOST="203.0.113.1")["port"], "STELLARCHAT_HOST")


def test_a_port_in_use_is_not_wrong(doctor: Callable[..., Findings]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = doctor(STELLARCHAT_PORT=str(listener.getsockname()[1]))
    assert found["port"]["is_well"]
    assert "in use" in found["port"]["message"]


async def test_an_upstream_without_models_or_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with fake_upstream() as upstream:
        upstream.on("/v1/models", whole_json({"error": "Unauthorized"}, status=401))
        environment = {"STELLARCHAT_UPSTREAM_URL": upstream.url}
        result = await asyncio.to_thread(CliRunner().invoke, cli, ["doctor"], env=environment)
    assert "lists no model" in result.output
    assert "STELLARCHAT_UPSTREAM_API_KEY" in result.output


async def test_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with fake_upstream() as upstream:
        environment = {"STELLARCHAT_UPSTREAM_URL": upstream.url, "STELLARCHAT_PORT": "0"}
        result = await asyncio.to_thread(CliRunner().invoke, cli, ["doctor"], env=environment)
    assert result.exit_code == 0, result.output
    assert "wrong" not in result.output
