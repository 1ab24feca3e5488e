"""`stellarchat doctor` names the cause of what is broken, and the next step."""

import asyncio
import calendar
import json
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from proxy.cli import cli
from proxy.storage.sqlite import connect, prepare
from tests.fake_upstream import fake_upstream, whole_json
from tests.serving import server_process
from tests.stored import fill, opened

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


@pytest.fixture(scope="module")
def tls_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server that speaks TLS with a certificate of its own making."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    make = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key -out certificate"
    subprocess.run(make.split(), check=True, capture_output=True, cwd=folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "certificate", folder / "key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):  # the listener is closed at the end
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        context.wrap_socket(connection, server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("scheme", "cause", "step"),
    (("http", "connection", "https://"), ("https", "certificate is not trusted", "SSL_CERT_FILE")),
)
def test_an_upstream_that_speaks_tls(
    doctor: Callable[..., Findings], tls_port: int, scheme: str, cause: str, step: str
) -> None:
    assert wrong(doctor(STELLARCHAT_UPSTREAM_URL=f"{scheme}://127.0.0.1:{tls_port}")["upstream"], cause, step)


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


def test_a_port_that_another_program_has(doctor: Callable[..., Findings]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = doctor(STELLARCHAT_PORT=str(listener.getsockname()[1]))
    assert wrong(found["port"], "another program", "STELLARCHAT_PORT")


def test_a_port_that_a_running_stellarchat_has_is_not_wrong(doctor: Callable[..., Findings], tmp_path: Path) -> None:
    with server_process(tmp_path, "http://127.0.0.1:9", "--demo") as server:
        found = doctor(STELLARCHAT_PORT=server.url.rsplit(":", 1)[1], STELLARCHAT_DEMO="on")
    assert found["port"]["is_well"]
    assert found["upstream"]["is_well"]
    assert "running StellarChat" in found["port"]["message"]


def test_its_own_address_as_upstream(doctor: Callable[..., Findings]) -> None:
    found = doctor(STELLARCHAT_PORT="8093", STELLARCHAT_UPSTREAM_URL="http://localhost:8093/v1")
    assert wrong(found["upstream"], "own address", "STELLARCHAT_UPSTREAM_URL")


def test_a_misspelt_setting(doctor: Callable[..., Findings]) -> None:
    found = doctor(STELLARCHAT_UPSTREM_URL="http://127.0.0.1:8000")
    assert wrong(found["settings"], "STELLARCHAT_UPSTREM_URL", "did you mean STELLARCHAT_UPSTREAM_URL?")


@pytest.mark.parametrize("name", ("STELLARCHAT_ADMIN_KEY_FILE", "STELLARCHAT_UPSTREAM_API_KEY_FILE"))
@pytest.mark.parametrize("path", ("missing", "."))
def test_a_key_file_that_cannot_be_read(doctor: Callable[..., Findings], name: str, path: str) -> None:
    assert wrong(doctor(**{name: path})["settings"], name)


@pytest.mark.parametrize("year", (2001, 2151))
def test_a_clock_that_cannot_be_right(
    doctor: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch, year: int
) -> None:
    seconds = calendar.timegm((year, 1, 1, 0, 0, 0))
    monkeypatch.setattr("proxy.commands.doctor_machine.time.time", lambda: float(seconds))
    assert wrong(doctor()["clock"], str(year), "set this machine's clock")


def test_few_descriptors(doctor: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.commands.doctor_machine.resource.getrlimit", lambda _what: (64, 64))
    assert wrong(doctor()["descriptors"], "64", "ulimit -Hn", "LimitNOFILE")


@pytest.mark.parametrize("url", ("sqlite:////proc/none/x.db", "sqlite:////dev/null/x.db"))
def test_a_place_where_no_file_can_be_made(doctor: Callable[..., Findings], url: str) -> None:
    assert wrong(doctor(DATABASE_URL=url)["database"], "DATABASE_URL")


def test_a_folder_as_database(doctor: Callable[..., Findings], tmp_path: Path) -> None:
    assert wrong(doctor(DATABASE_URL=f"sqlite:///{tmp_path}")["database"], "is a folder")


def with_schema(path: Path, version: int) -> None:
    with closing(connect(path)) as connection:
        prepare(connection, up_to=version)
        connection.execute(f"PRAGMA user_version = {version}")


@pytest.mark.parametrize("version", (99, 3))
def test_a_schema_that_is_not_known(doctor: Callable[..., Findings], tmp_path: Path, version: int) -> None:
    with_schema(tmp_path / "x.db", 7)
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    assert wrong(doctor(DATABASE_URL="sqlite:///x.db")["database"], "DATABASE_URL", "version" if version == 3 else "99")


def test_an_old_schema_is_named_and_left_as_it_is(doctor: Callable[..., Findings], tmp_path: Path) -> None:
    with_schema(tmp_path / "x.db", 7)
    found = doctor(DATABASE_URL="sqlite:///x.db")
    assert found["database"]["is_well"]
    assert "from schema 7 to" in found["database"]["message"]
    assert found["keys"]["is_well"]
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)


@pytest.mark.parametrize("at", (1024, 8192, 20_480))
def test_a_damaged_database(doctor: Callable[..., Findings], tmp_path: Path, at: int) -> None:
    with opened(tmp_path / "x.db") as connection:
        fill(connection)
    with (tmp_path / "x.db").open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 4096)
    assert wrong(doctor(DATABASE_URL="sqlite:///x.db")["database"], "is damaged", "restore a backup")


def test_a_database_that_was_cut_short(doctor: Callable[..., Findings], tmp_path: Path) -> None:
    with opened(tmp_path / "x.db") as connection:
        fill(connection)
    os.truncate(tmp_path / "x.db", 3000)
    assert wrong(doctor(DATABASE_URL="sqlite:///x.db")["database"], "is damaged", "restore a backup")


def test_nothing_is_made(doctor: Callable[..., Findings], tmp_path: Path) -> None:
    doctor()
    assert list(tmp_path.iterdir()) == []


async def test_an_upstream_without_models_or_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with fake_upstream() as upstream:
        upstream.on("/v1/models", whole_json({"error": "Unauthorized"}, status=401))
        environment = {"STELLARCHAT_UPSTREAM_URL": upstream.url}
        result = await asyncio.to_thread(CliRunner().invoke, cli, ["doctor"], env=environment)
    assert "requires a key (status 401)" in result.output
    assert "STELLARCHAT_UPSTREAM_API_KEY" in result.output


async def test_an_upstream_that_refuses_our_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with fake_upstream() as upstream:
        upstream.on("/v1/models", whole_json({"error": "Unauthorized"}, status=401))
        environment = {"STELLARCHAT_UPSTREAM_URL": upstream.url, "STELLARCHAT_UPSTREAM_API_KEY": "secret-of-ours"}
        result = await asyncio.to_thread(CliRunner().invoke, cli, ["doctor"], env=environment)
    assert "rejects our key (status 401)" in result.output
    assert "secret-of-ours" not in result.output


async def test_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with fake_upstream() as upstream:
        environment = {"STELLARCHAT_UPSTREAM_URL": upstream.url, "STELLARCHAT_PORT": "0"}
        result = await asyncio.to_thread(CliRunner().invoke, cli, ["doctor"], env=environment)
    assert result.exit_code == 0, result.output
    assert "wrong" not in result.output
