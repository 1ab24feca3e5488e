"""The short way to a caller: what it leaves to `send`, and what it leaves behind."""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from proxy.downstream.direct_writer import Outlet, outlet_of
from proxy.downstream.httptools_protocol import LimitedProtocol
from proxy.wire.headers import Headers
from tests.serving import running, settings_for

GOOD: Headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]


class App:
    """Answers `ok` by the short way where that takes it, and keeps what it was told."""

    def __init__(self, folder: Path, headers: Headers, *, status: int = 200) -> None:
        self.settings = settings_for(folder)
        self.headers, self.status = headers, status
        self.took: list[bool] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            scope["state"]["settings"] = self.settings
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        outlet = outlet_of(scope)
        assert outlet is not None
        await self.answer(outlet, send)

    async def answer(self, outlet: Outlet, send: Send) -> None:
        self.took.append(outlet.answer(send, self.status, self.headers, b"ok"))
        if not self.took[-1]:
            await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
            await send({"type": "http.response.body", "body": b"ok", "more_body": False})
        assert not outlet.answer(send, 200, GOOD, b"ok")  # a second reply is none
        assert not outlet.is_open


class Overheard(App):
    async def answer(self, outlet: Outlet, send: Send) -> None:
        async def listening(message: Message) -> None:
            await send(message)

        await super().answer(outlet, listening)


@pytest.fixture
def collected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def ask(app: App, method: str = "GET", **options: str) -> httpx.Response:
    async with running(app, http=LimitedProtocol) as url, httpx.AsyncClient(base_url=url) as http:
        return await http.request(method, "/", headers=options)


async def test_whole_reply_of_plain_framing_takes_the_short_way(tmp_path: Path) -> None:
    app = App(tmp_path, GOOD)
    response = await ask(app)
    assert (response.text, response.headers.raw, app.took) == ("ok", GOOD, [True])


async def test_reply_that_ends_its_connection_says_so(tmp_path: Path) -> None:
    app = App(tmp_path, GOOD)
    response = await ask(app, Connection="close")
    assert (response.headers["connection"], app.took) == ("close", [True])


@pytest.mark.parametrize(
    "headers",
    (
        [],
        [(b"content-type", b"text/plain")],
        [*GOOD, (b"connection", b"close")],
        [(b"transfer-encoding", b"chunked")],
    ),
)
async def test_other_framings_are_left_to_send(tmp_path: Path, headers: Headers) -> None:
    app = App(tmp_path, headers)
    assert ((await ask(app)).text, app.took) == ("ok", [False])


async def test_head_is_left_to_send(tmp_path: Path) -> None:
    app = App(tmp_path, GOOD)
    assert ((await ask(app, "HEAD")).headers["content-length"], app.took) == ("2", [False])


@pytest.mark.parametrize(
    "header",
    (
        (b"x", b"a\r\nb: c"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\0b"),
        (b"x", b"a\x7f"),
        (b"content-length", b"+2"),
        (b"content-length", b"3"),
    ),
)
async def test_head_that_uvicorn_refuses_is_left_to_it(tmp_path: Path, header: tuple[bytes, bytes]) -> None:
    app = App(tmp_path, [*GOOD, header])
    async with running(app, http=LimitedProtocol) as url, httpx.AsyncClient(base_url=url) as http:
        with suppress(httpx.RemoteProtocolError):
            await http.get("/")
    assert app.took[0] is False


async def test_who_listens_to_send_hears_the_reply(tmp_path: Path) -> None:
    app = Overheard(tmp_path, GOOD)
    assert ((await ask(app)).text, app.took) == ("ok", [False])


async def test_request_leaves_no_garbage_to_collect(tmp_path: Path, collected: None) -> None:
    app = App(tmp_path, GOOD)
    async with running(app, http=LimitedProtocol) as url, httpx.AsyncClient(base_url=url) as http:
        await http.get("/")
        gc.collect()
        for _ in range(20):
            await http.get("/")
        outlets = sum(isinstance(found, Outlet) for found in gc.get_objects())
    assert outlets == 0


async def test_connection_leaves_no_garbage_to_collect(tmp_path: Path, collected: None) -> None:
    app = App(tmp_path, GOOD)
    async with running(app, http=LimitedProtocol) as url:
        gc.collect()
        for _ in range(5):
            async with httpx.AsyncClient(base_url=url) as http:
                await http.get("/")
        await asyncio.sleep(0.1)  # until the server has noticed
        connections = sum(isinstance(found, LimitedProtocol) for found in gc.get_objects())
    assert connections == 0
