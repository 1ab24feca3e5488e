"""The engines that tests of what is stored run on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ENGINES = ("sqlite", "postgresql")
# Of tests that look into an SQLite file.
on_sqlite = pytest.mark.parametrize("chats", ("sqlite",), indirect=True)


@contextmanager
def place_of(engine: str, path: Path) -> Iterator[Path | str]:
    """Where `Chats` keeps its database: a file for `sqlite`, a new database for `postgresql`, where that can be had."""
    if engine == "sqlite":
        yield path
        return
    pytest.importorskip("psycopg")
    from tests.postgresql import database_url

    with database_url() as url:
        yield url
