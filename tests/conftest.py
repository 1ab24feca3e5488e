"""Fixtures of more than one folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chats import Chats
from tests.engines import ENGINES, databases_of, place_of


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
