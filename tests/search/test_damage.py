"""A damaged index costs time, never an answer; long and broken messages are found like any other."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from proxy.search import query
from proxy.search.deadline import Deadline
from proxy.search.index import Index
from proxy.search.query import Query
from proxy.storage import search_file
from tests.stored import opened, say


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "chat.db"
    dice = random.Random(5)
    with opened(path) as connection:
        for number in range(30):
            say(connection, f"the brown fox number {number} {dice.randbytes(300).hex()}")
    return path


def index_all(path: Path) -> int:
    with closing(Index(path)) as index:
        done = 0
        while count := index.step():
            done += count
        return done


def count(path: Path, text: str) -> int:
    return len(query.search(path, Query(text=text), limit=1000, deadline=Deadline(60))[0])


def overwrite(file: Path, pages: range, *, with_: bytes) -> None:
    with file.open("r+b") as stream:
        size = file.stat().st_size // 4096
        for page in pages:
            if page < size:
                stream.seek(page * 4096)
                stream.write((with_ * 4096)[:4096])


@pytest.mark.parametrize("junk", (b"\0", b"\xff", b"\x0a\x00\x05junk"))
@pytest.mark.parametrize("pages", (range(1), range(1, 4), range(4, 8), range(8, 16), range(2, 1000, 2), range(1, 1000)))
def test_a_damaged_page_of_the_index_hides_nothing_and_the_index_is_made_anew(
    path: Path, pages: range, junk: bytes
) -> None:
    index_all(path)
    file = search_file.index_path(path)
    with closing(sqlite3.connect(file)) as index:
        index.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        assert index.execute("PRAGMA page_size").fetchone() == (4096,)
    overwrite(file, pages, with_=junk)
    found = [count(path, text) for text in ("brown fox", "fo", "number 7")]
    with opened(path) as connection:
        say(connection, "one more fox")
    with closing(Index(path)) as index_:
        for _ in range(5):
            try:
                index_.step()
            except sqlite3.DatabaseError:
                index_.rebuild()
    assert found == [30, 30, 1]
    assert count(path, "brown fox") == 30
    assert not search_file.is_marked_damaged(file)


def test_an_error_that_passes_is_no_damage(path: Path) -> None:
    locked = sqlite3.OperationalError("database is locked")
    locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
    with search_file.opened(path) as connection:
        search_file.mark_damaged_by(connection, locked)
    assert not search_file.is_marked_damaged(search_file.index_path(path))


def test_the_lock_is_free_again_where_the_index_cannot_be_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(search_file, "STATEMENTS", {"create_segments": "no SQL"})
        with pytest.raises(sqlite3.OperationalError):
            Index(path)
    Index(path).close()


@pytest.mark.parametrize("indexed", (False, True))
def test_a_long_message_is_found_wherever_the_text_lies(path: Path, *, indexed: bool) -> None:
    size = search_file.WHOLE_BYTES
    with opened(path) as connection:
        for before in (size - 3, 2 * size - 1, 5 * size):
            say(connection, "數" * (before // 3) + "Zürich Straße" + "é" * size)
    if indexed:
        index_all(path)
    for text in ("zürich strasse", "ZÜ", "STRASSEÉ"):
        assert count(path, text) == 3
    assert count(path, "zürichs") == 0


@pytest.mark.parametrize("indexed", (False, True))
def test_texts_that_are_no_texts_hide_no_others(path: Path, *, indexed: bool) -> None:
    with opened(path) as connection:
        for number, content in enumerate((b"the fox as bytes", "CAST(x'66ff6f78' AS TEXT)", "12", b"\xff" * 2**18), 1):
            expression = content if isinstance(content, str) else "?"
            given = [] if isinstance(content, str) else [content]
            connection.execute(f"UPDATE messages SET content = {expression} WHERE message_no = {number}", given)
    if indexed:
        index_all(path)
    assert count(path, "brown fox") == 28
    assert count(path, "fox as bytes") == 1
