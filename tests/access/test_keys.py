"""`stellarchat keys`, and keys taking effect in a running server."""

import asyncio
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from proxy.access.key_cache import KeyCache
from proxy.access.keys import PREFIX, NewKey, create_key
from proxy.cli import cli
from proxy.storage.engine import database_of
from tests.engines import connected, environment_of, on_both_engines, rows_of
from tests.fake_upstream import fake_upstream
from tests.serving import REPOSITORY, running_proxy, server_process, settings_for

pytestmark = on_both_engines

MODELS = "/v1/models"


def make_key(folder: Path, **grant: object) -> str:
    """A new key in the database of `settings_for(folder)`."""
    with closing(connected(folder / "stellarchat.db")) as connection, connection.transaction():
        return create_key(connection, NewKey(**{"user_id": "ann", **grant}))[0]  # type: ignore[arg-type]


def rows(folder: Path, query: str, *parameters: object) -> list[tuple[object, ...]]:
    return rows_of(folder / "stellarchat.db", query, parameters)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def until(condition: Callable[[], Awaitable[bool]], *, seconds: float = 15.0) -> None:
    """Wait until a condition holds; TimeoutError if it does not in time."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    for name, value in environment_of(tmp_path / "stellarchat.db").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli, ["keys", *arguments])


def test_a_new_key_is_printed_once_and_only_its_hash_is_stored(run: Callable[..., Result], tmp_path: Path) -> None:
    made = run("create", "--user", "ann", "--name", "laptop")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert re.fullmatch(PREFIX + r"[\w-]{43}", key)
    [(stored, hint)] = rows(tmp_path, "SELECT key_hash, hint FROM api_keys")
    assert stored == hashlib.sha256(key.encode()).digest()
    assert hint == key[:15]
    for file in tmp_path.glob("stellarchat.db*"):
        assert key.encode() not in file.read_bytes()
    assert key not in run("list").output
    assert "From now on every caller needs a key" in made.stderr


def test_list_shows_state_and_quotas_are_kept(run: Callable[..., Result], tmp_path: Path) -> None:
    run("create", "--user", "ann", "--admin", "--expires", "90d")
    key = run("create", "--user", "bob\x1b[2J", "--requests-per-minute", "5", "--tokens-per-day", "100").stdout.strip()
    revoked = run("revoke", key[:15])
    assert (revoked.exit_code, "within 2 s" in revoked.output) == (0, True)
    lines = run("list").output.splitlines()
    assert " ann " in lines[1]
    assert " yes " in lines[1]
    assert " valid " in lines[1]
    assert " revoked " in lines[2]
    assert "\x1b" not in lines[2]
    assert rows(tmp_path, "SELECT requests_per_minute, tokens_per_day FROM api_keys WHERE user_id <> 'ann'") == [
        (5, 100)
    ]
    assert len(run("list", "--user", "ann").output.splitlines()) == 2


def test_json_says_all_but_the_hash(run: Callable[..., Result]) -> None:
    made = json.loads(run("create", "--user", "ann", "--admin", "--tokens-per-day", "9", "--json").output)
    [listed] = json.loads(run("list", "--json").output)["keys"]
    secret = made.pop("key")
    assert secret.startswith(listed["hint"])
    assert made == listed
    assert (listed["user_id"], listed["is_admin"], listed["state"]) == ("ann", True, "valid")
    assert listed["tokens_per_day"] == 9
    assert "key_hash" not in listed


@pytest.mark.parametrize("value", ("yesterday", "2020-01-01", "0d", "-1d", "9999999d", ""))
def test_a_wrong_expiry_is_refused(run: Callable[..., Result], value: str) -> None:
    assert run("create", "--user", "ann", "--expires", value).exit_code == 2


def test_revoking_what_is_not_there_is_an_error(run: Callable[..., Result]) -> None:
    assert run("revoke", "nothing").exit_code == 1
    key = run("create", "--user", "ann").stdout.strip()
    assert run("revoke", key[:15]).exit_code == 0
    assert run("revoke", key[:15]).exit_code == 1


def test_a_hint_of_two_keys_revokes_neither(run: Callable[..., Result], tmp_path: Path) -> None:
    run("create", "--user", "ann")
    run("create", "--user", "ann")
    rows(tmp_path, "UPDATE api_keys SET hint = 'same'")
    assert run("revoke", "same").exit_code == 1
    assert rows(tmp_path, "SELECT COUNT(*) FROM api_keys WHERE revoked_at IS NULL") == [(2,)]
    [key_id] = rows(tmp_path, "SELECT key_id FROM api_keys LIMIT 1")[0]
    assert run("revoke", str(key_id)).exit_code == 0


def test_an_empty_user_is_refused(run: Callable[..., Result]) -> None:
    assert run("create", "--user", " ").exit_code == 2


async def test_the_first_key_closes_a_running_server_and_revoking_it_does_not_open_it(tmp_path: Path) -> None:
    async with fake_upstream() as upstream:
        settings = settings_for(tmp_path, upstream_url=upstream.url, auth="auto")
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:

            async def is_closed() -> bool:
                return (await http.get(MODELS)).status_code == 401

            async def is_revoked() -> bool:
                return (await http.get(MODELS, headers=bearer(key))).status_code == 401

            assert (await http.get(MODELS)).status_code == 200
            key = await asyncio.to_thread(make_key, tmp_path)
            assert (await http.get(MODELS, headers=bearer(key))).status_code == 200
            await until(is_closed)
            rows(tmp_path, "UPDATE api_keys SET revoked_at = '2026-01-01T00:00:00.000Z'")
            await until(is_revoked)
            assert await is_closed()
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
            assert (await http.get(MODELS)).status_code == 401


async def test_a_key_made_by_nobody_s_request_closes_the_server_too(tmp_path: Path) -> None:
    async with fake_upstream() as upstream:
        settings = settings_for(tmp_path, upstream_url=upstream.url, auth="auto")
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:

            async def is_closed() -> bool:
                return (await http.get(MODELS)).status_code == 401

            await asyncio.to_thread(make_key, tmp_path)
            await until(is_closed)


async def test_a_key_found_while_the_keys_are_refreshed_is_still_the_one_that_is_charged(tmp_path: Path) -> None:
    secret = make_key(tmp_path).encode()
    database = database_of(settings_for(tmp_path))
    await database.open()
    try:
        for _ in range(5):
            keys = KeyCache(database, admin_key=None)
            work = [asyncio.create_task(keys.find(secret)), asyncio.create_task(keys.refresh())]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(0.05)  # noqa: ASYNC251 - both answers are there when the loop goes on
            found, _ = await asyncio.gather(*work)
            again = keys.held(secret) or await keys.find(secret)
            assert found is not None
            assert again is not None
            assert again.usage is found.usage
    finally:
        await database.close()


async def test_a_flood_of_unknown_keys_is_refused_and_a_good_key_is_not(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    async with fake_upstream() as upstream:
        settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
            port = int(url.rpartition(":")[2])
            flood = [asyncio.create_task(_unknown_keys(port, f"{PREFIX}{number}-", count=3)) for number in range(128)]
            good = []
            while not all(task.done() for task in flood):
                good.append((await http.get(MODELS, headers=bearer(key))).status_code)
            refused = {status for task in flood for status in task.result()}
    assert set(good) == {200}
    assert 401 in refused
    assert refused <= {401, 429}


async def _unknown_keys(port: int, prefix: str, *, count: int) -> list[int]:
    """The statuses for new keys that nobody has made, over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    statuses = []
    for number in range(count):
        writer.write(f"GET {MODELS} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Api-Key: {prefix}{number}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        statuses.append(int(head.split()[1]))
        await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))  # type: ignore[index]
    writer.close()
    await writer.wait_closed()
    return statuses


async def test_a_deleted_key_is_gone_within_seconds(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    async with fake_upstream() as upstream:
        settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, headers=bearer(key)) as http:

            async def is_gone() -> bool:
                return (await http.get(MODELS)).status_code == 401

            assert not await is_gone()
            rows(tmp_path, "DELETE FROM api_keys")
            await until(is_gone)


async def test_revoking_takes_effect_in_every_worker(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    async with fake_upstream() as upstream:
        with server_process(
            tmp_path, upstream.url, "--workers", "2", STELLARCHAT_AUTH="auto", STELLARCHAT_SPILL_RESERVE_BYTES="65536"
        ) as server:

            async def statuses() -> set[int]:
                found = set()
                for _ in range(8):  # a connection each, so that both workers are asked
                    async with httpx.AsyncClient(base_url=server.url) as http:
                        found.add((await http.get(MODELS, headers=bearer(key))).status_code)
                return found

            async def is_revoked() -> bool:
                return await statuses() == {401}

            assert await statuses() == {200}
            rows(tmp_path, "UPDATE api_keys SET revoked_at = '2026-01-01T00:00:00.000Z'")
            await until(is_revoked)
        assert not [line for line in server.output if key in line]


async def test_last_use_is_saved_without_a_write_a_request(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    async with fake_upstream() as upstream:
        settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, headers=bearer(key)) as http:
            for _ in range(20):
                assert (await http.get(MODELS)).status_code == 200
            assert rows(tmp_path, "SELECT last_used_at FROM api_keys") == [(None,)]
    [(used,)] = rows(tmp_path, "SELECT last_used_at FROM api_keys")
    assert str(used) > "2026"


async def test_strangers_keys_are_remembered_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.access.key_cache._UNKNOWN_LIMIT", 8)
    async with fake_upstream() as upstream:
        settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
            for number in range(30):
                assert (await http.get(MODELS, headers=bearer(f"{PREFIX}{number}"))).status_code == 401
    assert upstream.calls == []


@pytest.mark.parametrize(("host", "auth"), (("0.0.0.0", "auto"), ("0.0.0.0", "required"), ("::", "auto")))
def test_serving_others_without_a_key_is_refused(tmp_path: Path, host: str, auth: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--host", host, "--port", "0"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin", "STELLARCHAT_AUTH": auth},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "stellarchat keys create" in line
    assert "STELLARCHAT_AUTH=off" in line


@pytest.mark.parametrize(
    "environment",
    ({"STELLARCHAT_AUTH": "off"}, {"STELLARCHAT_AUTH": "auto", "STELLARCHAT_ADMIN_KEY": "sk-outside"}),
)
def test_serving_others_with_a_way_out_starts(tmp_path: Path, environment: dict[str, str]) -> None:
    with server_process(tmp_path, "http://127.0.0.1:9", "--host", "0.0.0.0", **environment) as server:
        port = server.url.rpartition(":")[2]
        expected = 502 if environment["STELLARCHAT_AUTH"] == "off" else 401
        assert httpx.get(f"http://127.0.0.1:{port}{MODELS}").status_code == expected
