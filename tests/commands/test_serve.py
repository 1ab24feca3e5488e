"""What `serve` says before its first request and after each."""

import os
import pty
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from proxy.cli import cli
from proxy.settings import Settings
from tests.serving import REPOSITORY, ServerProcess, server_process, until
from tests.stored import fill, opened

CHAT = "/v1/chat/completions"


def said(server: ServerProcess, text: str) -> bool:
    return any(text in line for line in server.output)


def test_demo_shows_a_first_request_that_works(tmp_path: Path) -> None:
    with server_process(tmp_path, "http://127.0.0.1:9", "--demo", STELLARCHAT_QUIET="off") as server:
        until(lambda: said(server, "Try: curl"))
        [line] = [line for line in server.output if line.startswith("Try: ")]
        done = subprocess.run(["bash", "-c", line.removeprefix("Try: ") + " -s"], capture_output=True, timeout=30)
        assert b"You said: Hello" in done.stdout
        until(lambda: said(server, "completed"))
    [line] = [line for line in server.output if "completed" in line]
    assert re.fullmatch(r"[\d:]{8}  stellarchat-demo  completed  \d+\+\d+ tokens  [\d.]+ s  session \S+ \(new\)", line)


def test_an_upstream_that_cannot_be_reached_is_named_with_its_cause(tmp_path: Path) -> None:
    with server_process(tmp_path, "http://user:secret@127.0.0.1:9", STELLARCHAT_QUIET="off") as server:
        until(lambda: said(server, "http://127.0.0.1:9: Upstream cannot be reached"))
        assert httpx.post(server.url + CHAT, json={"model": "m", "messages": []}).status_code == 502
        until(lambda: said(server, "failed"))
    assert not said(server, "secret")


def test_quiet_says_nothing_of_requests(tmp_path: Path) -> None:
    with server_process(tmp_path, "http://127.0.0.1:9", "--demo", "--quiet") as server:
        body = {"model": "stellarchat-demo", "messages": [{"role": "user", "content": "x"}]}
        assert httpx.post(server.url + CHAT, json=body).status_code == 200
        server.stop()
    assert not said(server, "completed")


def test_draining_is_said(tmp_path: Path) -> None:
    with server_process(tmp_path, "http://127.0.0.1:9", "--demo", STELLARCHAT_QUIET="off") as server:
        assert server.stop() == 0
    assert said(server, "Draining: 0 open replies get up to 30 s to end")


def test_colours_are_for_a_terminal(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, "http://127.0.0.1:9")
    reader, terminal = pty.openpty()
    command = [sys.executable, "-m", "proxy", "serve", "--demo", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "STELLARCHAT_AUTH": "off"}
    process = subprocess.Popen(command, cwd=server.folder, env=environment, stdout=terminal, stderr=terminal)
    os.close(terminal)
    seen = b""
    try:
        with open(reader, "rb", buffering=0) as file, suppress(OSError):
            while b"tokens" not in seen:
                seen += file.read(4096)
                if (found := re.search(rb"Try: curl (\S+)/v1/", seen)) and b"-d " in seen and b"asked" not in seen:
                    body = {"model": "stellarchat-demo", "messages": [{"role": "user", "content": "x"}]}
                    httpx.post(found[1].decode() + CHAT, json=body)
                    seen += b"asked"
    finally:
        process.terminate()
        process.wait(30)
    assert b"\033[32mcompleted\033[0m" in seen


def started(*_arguments: object, **_given: object) -> None:
    raise AssertionError("it has started")


def refusal(*arguments: str, **environment: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proxy.server.serve", started)  # which would go on for ever
        result = CliRunner().invoke(cli, ["serve", *arguments], env={"STELLARCHAT_LOG_DIR": "", **environment})
    assert result.exit_code == 2
    assert result.stderr.count("\n") <= 4
    return result.stderr


def test_its_own_address_is_refused_as_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    assert "own address" in refusal("--port", port, "--upstream", f"http://localhost:{port}")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    (
        ("STELLARCHAT_UPSTREAM_URL", "127.0.0.1:8000", "expected an address such as"),
        ("STELLARCHAT_UPSTREAM_URL", "http://127.0.0.1:8000/v1/models", "without a route"),
        ("DATABASE_URL", "mysql://x/y", "expected sqlite:///PATH"),
        ("DATABASE_URL", "sqlite:////dev/null/x.db", "cannot use the database /dev/null/x.db"),
        ("DATABASE_URL", "sqlite:////proc/none/x.db", "cannot use the database /proc/none/x.db"),
        ("DATABASE_URL", "sqlite:////tmp", "is a folder"),
        ("STELLARCHAT_LOG_DIR", "/dev/null/logs", "STELLARCHAT_LOG_DIR=/dev/null/logs"),
        ("STELLARCHAT_ADMIN_KEY_FILE", "missing", "No such file"),
        ("STELLARCHAT_UPSTREAM_API_KEY_FILE", ".", "Is a directory"),
        ("STELLARCHAT_HOST", "203.0.113.9", "STELLARCHAT_HOST"),
        ("STELLARCHAT_HOST", "no-host.invalid", "STELLARCHAT_HOST"),
        ("STELLARCHAT_HOST", "0.0.0.0", "stellarchat keys create"),
        ("STELLARCHAT_PORT", "eighty", "expected a whole number"),
        ("STELLARCHAT_WORKERS", "0", "from 1 to 64"),
    ),
)
def test_what_it_cannot_start_with_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal(**{"STELLARCHAT_LOG_DIR": "logs", "STELLARCHAT_AUTH": "auto", name: value})
    assert words in said
    assert said.startswith("stellarchat: ")
    assert said.count("\n") == 1
    assert "Errno" not in said


def damaged(path: Path, at: int) -> None:
    with opened(path) as connection:
        fill(connection)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 30_000)


def of_schema(path: Path, version: int) -> None:
    with opened(path) as connection:
        connection.execute(f"PRAGMA user_version = {version}")


@pytest.mark.parametrize(
    ("make", "words"),
    (
        (lambda path: path.write_bytes(b"no database" * 900), "not an SQLite database"),
        (lambda path: damaged(path, 100), "is damaged"),
        (lambda path: of_schema(path, 99), "schema 99"),
        (lambda path: of_schema(path, 3), "before the first release"),
    ),
)
def test_a_database_that_cannot_be_used_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.db")
    said = refusal(STELLARCHAT_LOG_DIR="logs", DATABASE_URL="sqlite:///x.db", STELLARCHAT_PORT="0")
    assert words in said
    assert said.count("\n") == 1


def test_a_port_in_use_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        said = refusal(STELLARCHAT_LOG_DIR="logs", STELLARCHAT_PORT=port)
    assert "Address already in use" in said
    assert said.count("\n") == 1


def test_a_disk_that_is_full_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        said = refusal(STELLARCHAT_LOG_DIR="logs", STELLARCHAT_PORT="0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot use the database" in said
    assert said.count("\n") == 1


def test_a_full_endpoint_is_refused_as_upstream() -> None:
    assert "without a route" in refusal("--upstream", "http://127.0.0.1:8000/v1/chat/completions")


def test_demo_and_upstream_exclude_each_other() -> None:
    assert "--demo is instead of --upstream" in refusal("--demo", "--upstream", "http://127.0.0.1:8000")


def test_help_lists_every_setting_once_and_the_usual_ones_first() -> None:
    text = CliRunner().invoke(cli, ["serve", "--help"]).output
    names = re.findall(r"^  (STELLARCHAT_\w+|DATABASE_URL|OTEL_\w+)\b", text, flags=re.MULTILINE)
    assert sorted(names) == sorted(each.metadata["name"] for each in Settings.__dataclass_fields__.values())
    assert names[0] == "STELLARCHAT_UPSTREAM_URL"
    assert text.index("The usual settings") < text.index("Limits and time-outs")


def test_help_says_how_to_start() -> None:
    text = CliRunner().invoke(cli, ["--help"]).output
    assert "To get started" in text
    assert "stellarchat serve --demo" in text


def test_the_version_names_what_it_runs_on() -> None:
    assert re.fullmatch(r"stellarchat \S+ \(Python \S+, SQLite \S+\)\n", CliRunner().invoke(cli, ["--version"]).output)


def test_the_limit_of_descriptors_is_raised_at_start(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with server_process(tmp_path, "http://127.0.0.1:9", "--demo") as server:
            limits = Path(f"/proc/{server.pid}/limits").read_text(encoding="ascii")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert int(limits.split("Max open files")[1].split()[0]) > 256
