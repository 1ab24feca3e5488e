"""Fixtures of more than one folder."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.chats import Chats
from tests.engines import ENGINES, databases_of, place_of
from tests.fake_upstream import FakeUpstream, fake_upstream


@pytest.fixture(scope="session", autouse=True)
def _certificates_are_read_once() -> Iterator[None]:
    """Every `httpx.AsyncClient()` reads the authorities' certificates: 50 ms, and nearly all tests have one."""
    context = httpx.create_ssl_context()

    def made(verify: object = True, **options: object) -> object:
        is_default = verify is True and not options.get("cert")
        return context if is_default else httpx.create_ssl_context(verify, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", made)
        yield


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine of the databases that paths stand for while the test runs."""
    with databases_of(request.param):
        yield request.param


@pytest.fixture(params=ENGINES)
def chats(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chats]:
    with place_of(request.param, tmp_path / "test.db") as place:
        opened = Chats(place)
        yield opened
        opened.connection.close()


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    """A fake vLLM: a chat model that echoes, unless the test says with `on` how a path behaves."""
    async with fake_upstream() as fake:
        yield fake
