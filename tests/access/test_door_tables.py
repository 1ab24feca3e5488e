"""The doors as tables: who may reach what, in every combination, asked over the wire.

| door | the table | here, or where it is |
|---|---|---|
| paths | forms of a path x routes of an engine's control x callers; nginx before the engine | here, `test_paths.py` |
| browsers | Host x Origin x Sec-Fetch-Site x keys on and off x what is asked | here, `test_doors.py` |
| trailers | fields x routes x callers | here; sizes: `tests/downstream/test_httptools_protocol.py` |
| locked doors | what takes the keys away x workers x restarts | here; deletion of a user: `test_doors.py` |
| settings | forms of `.env` and of secrets' files | `tests/test_settings.py` |
| files | restored and imported ones | `tests/maintenance/test_backup.py`, `test_export.py`, `test_broken_rows.py` |
| routes | every route x owner, other user, admin, no key | `tests/test_isolation.py`, `tests/web/test_rights.py` |
"""

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from proxy.access.paths import Reach, reach_of
from proxy.cli import cli
from tests.access.test_keys import bearer, make_key, rows
from tests.access.test_paths import CONTROLS, DISGUISES, TRAILERS
from tests.fake_upstream import fake_upstream, mirror
from tests.long import some_of
from tests.serving import running, running_proxy, server_process, settings_for
from tests.stored import opened

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}

# --- paths ------------------------------------------------------------------------------------------------------------

ENGINE_CONTROLS = (*CONTROLS[: CONTROLS.index("/metrics")], "/is_paused", "/is_scaling_elastic_ep")
# Over the wire a few stand for all; `test_paths.py` has every one in every form.
SOME_CONTROLS = ("/v1/load_lora_adapter", "/sleep", "/collective_rpc", "/inference/v1/generate", "/docs")


def _confusables(path: str) -> Iterator[str]:
    """The same letters, escaped, in capitals, or as letters that a server might fold to them."""
    yield "".join(f"%{ord(letter):02x}" if letter != "/" else letter for letter in path)
    yield "".join(f"%{ord(letter):02X}" for letter in path)
    yield "".join(f"%25{ord(letter):02x}" if letter != "/" else letter for letter in path)
    yield path.upper()
    yield path.replace("a", "%ef%bd%81").replace("s", "%c5%bf").replace("k", "%e2%84%aa")


def forms_of(path: str) -> list[str]:
    """Every way to write a path that some server may read as it."""
    name = path.rpartition("/")[2]
    disguised = [
        prefix + form.format(rest)
        for rest in {path[1:], name}
        for form in DISGUISES
        for prefix in ("", "/v1", "/v1/models")
    ]
    absolute = [f"http://proxy{path}", f"HTTP://proxy{path}", f"http://proxy/v1/../{path}", path[1:], f"//proxy{path}"]
    return [
        *(path + trailer for trailer in TRAILERS),
        *disguised,
        *_confusables(path),
        *absolute,
        f"/v1{path}",
        f"/v1/{name}",
        f"/v1/{name}/",
        f"/v1/{name}%2f",
        f"/tokenize/..{path}",
        f"/tokenize{path}",
    ]


class Engine:
    """Routes like vLLM's, matched as Starlette matches them; remembers which were asked for."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.url = ""

    async def control(self, request: Request) -> JSONResponse:
        self.reached.append(request.scope["raw_path"].decode("latin-1"))
        return JSONResponse({"controlled": True})


async def _unknown(_request: Request) -> JSONResponse:
    return JSONResponse({"detail": "Not Found"}, status_code=404)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    methods = ["GET", "POST", "PUT", "DELETE"]
    routes = [Route(path, made.control, methods=methods) for path in ENGINE_CONTROLS]
    async with running(Starlette(routes=[*routes, Route("/{path:path}", _unknown, methods=methods)])) as url:
        made.url = url
        yield made


# What may stand between the proxy and the engine. `{engine}` is its address.
NGINX = {
    "as it is": "location / { proxy_pass {engine}; }",
    "with a URI, which decodes and merges": "location / { proxy_pass {engine}/; }",
    "with a URI for each prefix": "location /v1/ { proxy_pass {engine}/v1/; } location / { proxy_pass {engine}/; }",
    "without the prefix": "location /v1/ { proxy_pass {engine}/; } location / { proxy_pass {engine}; }",
    "rewritten": "location / { rewrite ^/(.*)$ /$1 break; proxy_pass {engine}; }",
    "decoded by a variable": "location / { proxy_pass {engine}$uri; }",
    "slashes kept": "merge_slashes off; location / { proxy_pass {engine}/; }",
}


@contextmanager
def nginx(folder: Path, engine_url: str, location: str) -> Iterator[str]:
    """The address of an nginx that passes requests on to the engine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    paths = " ".join(f"{name}_temp_path {name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    server = f"server {{ listen 127.0.0.1:{port}; {location.replace('{engine}', engine_url)} }}"
    text = (
        "daemon off; pid nginx.pid; error_log error.log crit; worker_processes 1; events { worker_connections 128; }"
        f" http {{ access_log off; {paths} keepalive_requests 1000000; proxy_http_version 1.1; {server} }}"
    )
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen(["nginx", "-p", str(folder), "-e", "error.log", "-c", "nginx.conf"])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


async def ask_all(url: str, targets: list[str], *headers: str) -> list[int]:
    """The status of each POST, asked in turn on kept connections. 0: the connection closed without an answer."""
    statuses = []
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = "".join(f"{line}\r\n" for line in ("Host: proxy", "Content-Length: 2", *headers))
    for target in targets:
        writer.write(f"POST {target} HTTP/1.1\r\n{head}\r\n{{}}".encode("latin-1"))
        try:
            async with asyncio.timeout(20):
                answer = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            answer = b"HTTP/1.1 000 closed\r\nconnection: close\r\n"
        lines = answer.lower().split(b"\r\n")
        statuses.append(int(lines[0].split(b" ")[1]))
        for line in lines:
            if line.startswith(b"content-length:"):
                await reader.readexactly(int(line.partition(b":")[2]))
        if b"connection: close" in lines:
            writer.close()
            reader, writer = await asyncio.open_connection(host, int(port))
    writer.close()
    return statuses


def sendable(targets: list[str]) -> list[str]:
    """What can stand in a request line at all; once each."""
    return list(dict.fromkeys(target for target in targets if not set(target) & set(" \r\n")))


@pytest.mark.parametrize("control", some_of(SOME_CONTROLS, every=2))
async def test_no_form_of_a_control_route_is_relayed_for_whom_it_is_not(
    engine: Engine, tmp_path: Path, control: str
) -> None:
    ordinary, admin = make_key(tmp_path), make_key(tmp_path, user_id="root", is_admin=True)
    callers = {
        "no key": (),
        "bad key": (f"Authorization: Bearer {ordinary}x",),
        "ordinary": (f"Authorization: Bearer {ordinary}",),
        "ordinary, for another": (f"x-api-key: {ordinary}", "X-User-Id: root"),
    }
    targets = sendable(forms_of(control))
    settings = settings_for(tmp_path, upstream_url=engine.url, auth="required")
    async with running_proxy(settings) as url:
        for caller, headers in callers.items():
            statuses = await ask_all(url, targets if caller == "ordinary" else targets[::8], *headers)
            assert engine.reached == [], caller
            assert set(statuses) <= {400, 401, 404, 405, 505}, (caller, statuses)
        await ask_all(url, targets[::4], f"Authorization: Bearer {admin}")
        # An admin reaches it by its own name, never by a form that only some server reads so.
        assert control in engine.reached
        assert not [path for path in engine.reached if "//" in path or "%25" in path or ".." in path]


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed (Debian: nginx-light)")
@pytest.mark.parametrize("location", NGINX.values(), ids=NGINX)
async def test_no_form_of_a_control_route_passes_through_nginx(engine: Engine, tmp_path: Path, location: str) -> None:
    key = make_key(tmp_path)
    with nginx(tmp_path, engine.url, location) as upstream_url:
        settings = settings_for(tmp_path, upstream_url=upstream_url, auth="required")
        async with running_proxy(settings) as url:
            for control in ENGINE_CONTROLS:
                targets = sendable(forms_of(control))
                relayed = [each for each in targets if reach_of(each.partition("?")[0].encode()) is Reach.ANYONE]
                await ask_all(url, [*relayed, *targets[::60]], f"Authorization: Bearer {key}")
                assert engine.reached == [], control
            await ask_all(upstream_url, ["/v1/load_lora_adapter", "/v1/sleep"])
            assert engine.reached, "nginx does not reach the engine"


# --- browsers ---------------------------------------------------------------------------------------------------------

CORS = "https://ui.example"
HOSTS = {
    "localhost": True,
    "127.0.0.1:8080": True,
    "chat.example": True,
    "evil.example": False,
    "127.0.0.1.evil": False,
}
ORIGINS = {
    None: True,
    "http://localhost:3000": True,
    "http://chat.example": True,
    CORS: True,
    "http://evil.example": False,
    "null": False,
    "": False,
}
SITES = {None: True, "same-origin": True, "same-site": True, "none": True, "cross-site": False, "": False}
ASKED = {
    ("GET", "/v1/sessions"): "reads",
    ("GET", "/v1/models"): "relays",
    ("POST", CHAT): "relays",
    ("POST", "/v1/embeddings"): "relays",
    ("POST", "/v1/sessions"): "changes",
    ("DELETE", "/v1/users/nobody"): "changes",
}


def _expected(*, host: str, origin: str | None, site: str | None, does: str, keys: bool) -> bool:
    """Whether a browser's request is answered: what reads is, since only CORS lets a page see it."""
    if keys:
        return True
    is_own = origin == CORS or (ORIGINS[origin] and SITES[site])
    return HOSTS[host] and (is_own or does == "reads")


@pytest.mark.parametrize(("auth", "keys"), (("off", False), ("auto", False), ("auto", True), ("required", True)))
async def test_a_page_of_another_site_does_nothing_where_no_key_is_asked_for(
    tmp_path: Path, auth: str, keys: bool
) -> None:
    headers = bearer(make_key(tmp_path)) if keys else {}
    async with fake_upstream() as upstream:
        upstream.on("*", mirror)
        settings = settings_for(
            tmp_path, upstream_url=upstream.url, auth=auth, cors_origins=(CORS,), allowed_hosts=("chat.example",)
        )
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, headers=headers) as http:
            combined = some_of(product(HOSTS, ORIGINS, SITES, ASKED.items()), every=11)
            for host, origin, site, (asked, does) in combined:
                said = {"Host": host, "Origin": origin, "Sec-Fetch-Site": site}
                given = {name: value for name, value in said.items() if value is not None}
                before = len(upstream.calls)
                answer = await http.request(*asked, headers=given, json=BODY)
                is_answered = _expected(host=host, origin=origin, site=site, does=does, keys=keys)
                assert (answer.status_code != 403) is is_answered, (said, asked, answer.text)
                assert is_answered or len(upstream.calls) == before, (said, asked)
                if not is_answered:
                    assert answer.json()["error"]["code"] in ("host_not_allowed", "origin_not_allowed")


# --- trailers ---------------------------------------------------------------------------------------------------------

TRAILER_FIELDS = (
    *("Authorization: Bearer {key}", "authorization: Bearer {key}", "x-api-key: {key}", "Cookie: stellarchat={key}"),
    *("X-User-Id: bob", "X-Session-Id: of-the-trailer", "x-litellm-session-id: of-the-trailer", "Host: evil.example"),
    *("Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Content-Length: 0", "Transfer-Encoding: chunked"),
    *("Connection: close", "Expect: 100-continue", "Upgrade: websocket", "Idempotency-Key: of-the-trailer"),
)
FRAMING = ("Content-Length", "Transfer-Encoding", "Connection", "Upgrade")
CHUNKED_ROUTES = (CHAT, "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/sessions", "/api/sessions")


@pytest.mark.parametrize("route", CHUNKED_ROUTES)
async def test_no_field_of_a_trailer_counts(tmp_path: Path, route: str) -> None:
    key, admin = make_key(tmp_path), make_key(tmp_path, user_id="root", is_admin=True)
    text = json.dumps({**BODY, "input": "hello", "title": "t"})
    async with fake_upstream() as upstream:
        upstream.on("*", mirror)
        settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
        async with running_proxy(settings) as url:
            host, _, port = url.removeprefix("http://").partition(":")
            for field, (caller, expected) in product(TRAILER_FIELDS, ((None, 401), (key, 200), (admin, 200))):
                line = field.format(key=admin)
                head = f"POST {route} HTTP/1.1\r\nHost: proxy\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
                head += f"Authorization: Bearer {caller}\r\n" if caller else ""
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(f"{head}\r\n{len(text):x}\r\n{text}\r\n0\r\n{line}\r\n\r\n".encode())
                answer = await reader.read()
                writer.close()
                # One about the message's framing is refused; what is made is answered with 201.
                refusals = {400} if field.startswith(FRAMING) else set()
                assert int(answer.split(b" ")[1]) in {expected, expected + 1} | refusals, (field, answer)
                assert b"of-the-trailer" not in answer
    value = {b"bob", b"of-the-trailer", admin.encode(), key.encode(), b"evil.example", b"cross-site"}
    assert not [call.head for call in upstream.calls if any(each in call.head for each in value)]
    assert {user for (user,) in rows(tmp_path, "SELECT user_id FROM sessions")} <= {"ann", "root"}
    assert rows(tmp_path, "SELECT external_id FROM sessions WHERE external_id IS NOT NULL") == []


# --- locked doors -----------------------------------------------------------------------------------------------------


def command(folder: Path, *arguments: str) -> None:
    """Run `stellarchat` on the database of the folder."""
    result = CliRunner().invoke(cli, arguments, env={"DATABASE_URL": f"sqlite:///{folder / 'stellarchat.db'}"})
    assert result.exit_code == 0, result.output


def expire(folder: Path) -> None:
    rows(folder, "UPDATE api_keys SET expires_at = '2020-01-01T00:00:00.000Z'")


def remove(folder: Path) -> None:
    rows(folder, "DELETE FROM api_keys")


def revoke(folder: Path) -> None:
    for (key_id,) in rows(folder, "SELECT key_id FROM api_keys WHERE revoked_at IS NULL"):
        command(folder, "keys", "revoke", str(key_id))


def bring_back(folder: Path) -> None:
    """Restore a copy of before there were keys."""
    with opened(folder / "older.db"):
        pass
    command(folder, "restore", str(folder / "older.db"), "--force")


@pytest.mark.parametrize(
    ("ending", "workers"),
    (
        *some_of(((expire, "1"), (expire, "2"), (remove, "2"), (remove, "1"), (revoke, "2"), (revoke, "1")), every=2),
        (bring_back, "1"),
    ),
)
async def test_a_door_stays_locked_whatever_becomes_of_its_keys(
    tmp_path: Path, ending: Callable[[Path], None], workers: str
) -> None:
    key = make_key(tmp_path)
    settings = {"STELLARCHAT_AUTH": "auto", "STELLARCHAT_WORKERS": workers}
    if ending is bring_back:
        ending(tmp_path)  # never under a running server: the command refuses that
    for start in range(2):
        with server_process(tmp_path, "http://127.0.0.1:9", **settings) as server:
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
                if start == 0 and ending is not bring_back:
                    ending(tmp_path)
                for _ in range(3):
                    assert {(await http.get("/v1/sessions")).status_code for _ in range(8)} == {401}
                    await asyncio.sleep(1)
                assert {(await http.get("/v1/sessions", headers=bearer(key))).status_code for _ in range(8)} == {401}
            assert server.stop() == 0
