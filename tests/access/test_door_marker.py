"""The marker file: a door that was locked stays locked when the database's files are lost."""

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from proxy.access.door_marker import DoorMarker
from proxy.cli import cli
from proxy.settings import Settings
from proxy.storage.sqlite import connect, prepare
from tests.access.test_keys import bearer, make_key, until
from tests.serving import running_proxy, server_process, settings_for
from tests.stored import opened

NAME = "keys-required-stellarchat.db"
SAYS = "says that they were before, but the database has none: create one with `stellarchat keys create"
UPSTREAM = "http://127.0.0.1:9"


def marker_of(settings: Settings) -> DoorMarker:
    return DoorMarker(settings.database_path, folder=settings.state_path)


def auto(folder: Path, **changes: Any) -> Settings:
    return settings_for(folder, **{"auth": "auto", **changes})


def command(folder: Path, *arguments: str, **environment: str) -> Result:
    database = f"sqlite:///{folder / 'stellarchat.db'}"
    return CliRunner().invoke(cli, arguments, env={"DATABASE_URL": database, **environment})


async def answers(settings: Settings) -> int:
    """The status of a request without a key, after a start."""
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        return (await http.get("/v1/sessions")).status_code


def remove(folder: Path) -> None:
    for path in folder.glob("stellarchat.db*"):
        path.unlink()


def replace(folder: Path) -> None:
    remove(folder)
    with opened(folder / "stellarchat.db"):
        pass


def empty(folder: Path) -> None:
    remove(folder)
    (folder / "stellarchat.db").touch()


def statuses(url: str, **headers: str) -> set[int]:
    """Of a connection each, so that all workers are asked."""
    return {httpx.get(f"{url}/v1/sessions", headers=headers, verify=False).status_code for _ in range(6)}


@pytest.mark.parametrize(("losses", "workers"), (((remove, replace, empty, remove), "1"), ((remove,), "2")))
def test_a_server_whose_database_was_lost_stays_closed_and_says_why(
    tmp_path: Path, losses: tuple[Callable[[Path], None], ...], workers: str
) -> None:
    make_key(tmp_path)
    environment = {"STELLARCHAT_AUTH": "auto", "STELLARCHAT_WORKERS": workers}
    with server_process(tmp_path, UPSTREAM, **environment) as server:
        assert statuses(server.url) == {401}
        assert server.stop() == 0
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    for lose in losses:
        lose(tmp_path)
        with server_process(tmp_path, UPSTREAM, **environment) as server:
            assert statuses(server.url) == {401}
            assert server.stop() == 0
        [line] = [line for line in server.output if SAYS in line]
        assert str(tmp_path / NAME) in line
    key = make_key(tmp_path)
    with server_process(tmp_path, UPSTREAM, **environment) as server:
        assert statuses(server.url, **bearer(key)) == {200}
        assert statuses(server.url) == {401}
    assert not [line for line in server.output if SAYS in line]


@pytest.mark.parametrize("workers", ("1", "2"))
def test_a_database_replaced_while_it_is_served_opens_nothing_after_a_kill(tmp_path: Path, workers: str) -> None:
    environment = {"STELLARCHAT_AUTH": "auto", "STELLARCHAT_WORKERS": workers}
    with opened(tmp_path / "other.db"):
        pass
    with server_process(tmp_path, UPSTREAM, **environment) as server:
        assert statuses(server.url) == {200}
        make_key(tmp_path)

        async def is_marked() -> bool:
            return (tmp_path / NAME).exists()

        asyncio.run(until(is_marked))
        (tmp_path / "other.db").rename(tmp_path / "stellarchat.db")

        async def is_closed() -> bool:
            return await asyncio.to_thread(statuses, server.url) == {401}

        asyncio.run(until(is_closed))  # a worker that saw no key sees the file
        server.kill()
        server.start()
        assert statuses(server.url) == {401}


async def test_deleting_the_marker_opens_a_database_without_keys_and_only_that(tmp_path: Path) -> None:
    make_key(tmp_path)
    assert await answers(auto(tmp_path)) == 401
    (tmp_path / NAME).unlink()
    assert await answers(auto(tmp_path)) == 401
    assert (tmp_path / NAME).exists()
    replace(tmp_path)
    assert await answers(auto(tmp_path)) == 401
    assert await answers(auto(tmp_path, auth="off")) == 200
    (tmp_path / NAME).unlink()
    assert await answers(auto(tmp_path)) == 200
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("locked", ({"admin_key": "sk-outside"}, {"auth": "required"}, {"host": "0.0.0.0"}))
async def test_what_locked_the_door_does_not_matter(tmp_path: Path, locked: dict[str, str]) -> None:
    assert await answers(auto(tmp_path, **locked)) == 401
    remove(tmp_path)
    assert await answers(auto(tmp_path)) == 401


async def test_a_door_that_was_never_locked_has_no_marker(tmp_path: Path) -> None:
    for auth in ("auto", "off"):
        assert await answers(auto(tmp_path, auth=auth)) == 200
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("auth", ("auto", "off"))
async def test_a_start_on_a_database_of_an_older_release_makes_the_marker(tmp_path: Path, auth: str) -> None:
    make_key(tmp_path)
    with closing(sqlite3.connect(tmp_path / "stellarchat.db")) as connection, connection:
        connection.execute("DELETE FROM doors")  # keys of before they were remembered
    await answers(auto(tmp_path, auth=auth))
    remove(tmp_path)
    assert await answers(auto(tmp_path)) == 401


async def test_the_marker_is_in_the_state_folder_and_an_older_one_beside_the_database_counts(tmp_path: Path) -> None:
    make_key(tmp_path)
    state = tmp_path / "state"
    await answers(auto(tmp_path))
    replace(tmp_path)
    assert await answers(auto(tmp_path, state_dir=str(state))) == 401
    assert (state / NAME).exists()
    (tmp_path / NAME).unlink()
    assert await answers(auto(tmp_path, state_dir=str(state))) == 401
    assert await answers(auto(tmp_path)) == 200


async def test_a_marker_that_cannot_be_written_is_one_log_line_and_is_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    settings = auto(tmp_path, state_dir=str(state))
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:

        async def is_closed() -> bool:
            return (await http.get("/v1/sessions")).status_code == 401

        async def is_told() -> bool:
            return "could not write" in caplog.text

        async def is_marked() -> bool:
            return (state / NAME).exists()

        state.rename(tmp_path / "away")
        state.touch()  # no folder: nobody can write there, not even root
        key = await asyncio.to_thread(make_key, tmp_path)
        await until(is_closed)
        await until(is_told)
        await asyncio.sleep(2.5)  # another attempt
        assert (await http.get("/v1/sessions", headers=bearer(key))).status_code == 200
        assert caplog.text.count("could not write") == 1
        state.unlink()
        (tmp_path / "away").rename(state)
        await until(is_marked)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and look everywhere")
def test_a_folder_that_cannot_be_written_or_looked_into(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o500)
    marker = DoorMarker(tmp_path / "x.db", folder=folder)
    assert marker.find() is None
    with pytest.raises(OSError):  # noqa: PT011 - any
        marker.write()
    folder.chmod(0)
    assert marker.find() is not None  # it may be there
    folder.chmod(0o700)


def test_the_marker_is_written_once(tmp_path: Path) -> None:
    marker = marker_of(auto(tmp_path))
    marker.write()
    first = (tmp_path / NAME).stat()
    marker.write()
    assert (tmp_path / NAME).stat().st_mtime_ns == first.st_mtime_ns
    assert "delete this file" in (tmp_path / NAME).read_text()


@pytest.fixture
def lost(tmp_path: Path) -> Path:
    """A folder with a marker and a database that knows of no key."""
    marker_of(auto(tmp_path)).write()
    replace(tmp_path)
    return tmp_path


def test_doctor_and_check_name_the_marker_and_the_next_step(lost: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lost)
    found = {each["about"]: each for each in json.loads(command(lost, "doctor", "--json").output)["findings"]}["keys"]
    assert not found["is_well"]
    assert str(lost / NAME) in found["message"]
    assert "stellarchat keys create" in found["advice"]
    checked = command(lost, "check")
    assert checked.exit_code == 1
    assert str(lost / NAME) in checked.output
    make_key(lost)
    assert command(lost, "check").exit_code == 0
    found = {each["about"]: each for each in json.loads(command(lost, "doctor", "--json").output)["findings"]}["keys"]
    assert found["is_well"]


async def test_a_backup_from_before_the_first_key_opens_nothing_where_the_database_is_gone(lost: Path) -> None:
    with closing(connect(lost / "older")) as connection:
        prepare(connection)
    remove(lost)
    restored = command(lost, "restore", str(lost / "older"))
    assert restored.exit_code == 0, restored.output
    assert str(lost / NAME) in restored.output
    assert await answers(auto(lost)) == 401
