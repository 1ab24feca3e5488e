"""Search finds what a look through every message finds, however much of it is indexed."""

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.search import engines, query, rank
from proxy.search.deadline import Deadline, TimeOutError
from proxy.search.index import Index
from proxy.search.query import Hit, Order, Query
from proxy.settings import Settings
from proxy.storage import search_file, tombstones
from proxy.storage.sqlite_connection import SqliteConnection
from tests.engines import on_both_engines, url_of
from tests.long import examples
from tests.serving import running_proxy, settings_for
from tests.stored import chat, choice, exchange, opened, outcome, say, user

WORDS = (
    *("hello", "Hello", "HELL", "world", "straße", "STRASSE", "İstanbul", "ΣΊΣΥΦΟΣ", "ﬁne", "naïve", "a", "I"),
    *("你好", "世界", "数据库", "機械学習", "データ", "한국어", "안녕", "สวัสดี", "😀", "👩‍👩‍👧", "🇩🇪", "é", "e\u0301"),
    *("AND", "OR", "NOT", "NEAR(a b)", '"', '""', "'", "*", "a*", "^x", "col:x", "-", "(", ")", "%", "_", "\\", "\0"),
    *("{", "}", "\ue020", "u0", "\n", "\t", "  ", "<b>", "0x1F", "https://example.com/?a=1&b=2"),
    *("\U0010ffff", "\U000f1234", "\x02"),
)
texts = st.lists(st.sampled_from(WORDS) | st.text(min_size=1, max_size=4), max_size=12).map("".join) | st.lists(
    st.sampled_from(WORDS), max_size=12
).map(" ".join)


def encodes(text: str) -> bool:
    return text.encode("utf-8", "replace").decode() == text


def index_all(path: Path) -> int:
    if not url_of(path).startswith("sqlite:"):
        return 0  # no index is kept there
    with closing(Index(path)) as index:
        index.clean()
        done = 0
        while count := index.step():
            done += count
        return done


def grams(path: Path, gram: str) -> list[tuple[int]]:
    """The messages that the index has with this gram, in whatever segment."""
    with closing(sqlite3.connect(search_file.index_path(path))) as index:
        segments = [row[0] for row in index.execute("SELECT segment FROM segments")]
        return [
            row
            for segment in segments
            for row in index.execute(f"SELECT rowid FROM grams_{segment} WHERE grams_{segment} MATCH ?", [f'"{gram}"'])
        ]


def numbers(
    path: Path, text: str, *, limit: int = 1000, offset: int = 0, order: Order = "newest", **filters: Any
) -> list[int]:
    return [
        hit.message_no for hit in hits(path, Query(text=text, **filters), limit=limit, offset=offset, order=order)[0]
    ]


def hits(path: Path, asked: Query, **page: Any) -> tuple[list[Hit], bool]:
    found, has_more = engines.search(Settings(database_url=url_of(path)), asked, deadline=Deadline(60), **page)
    return [each.hit for each in found], has_more


def scanned(connection: SqliteConnection, text: str, *, user_id: str | None = None) -> list[int]:
    rows = connection.execute(
        "SELECT m.message_no, m.content, s.user_id FROM messages AS m JOIN sessions AS s USING (session_id)"
    )
    found = []
    for number, content, owner in rows:
        whole = content.replace("\ufdd00", "\0")  # as PostgreSQL keeps it
        if text.casefold() in whole.casefold() and user_id in (None, owner):
            found.append(number)
    return sorted(found, reverse=True)


@settings(max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_search_finds_what_a_scan_finds(data: st.DataObject) -> None:
    contents = data.draw(st.lists(texts.filter(encodes), min_size=1, max_size=12))
    few_runs = data.draw(st.booleans())
    indexed = data.draw(st.integers(0, len(contents)))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(query, "_RUNS_ASKED", 2 if few_runs else 500)
        path = Path(folder) / "chat.db"
        with opened(path) as connection:
            for position, content in enumerate(contents):
                if position == indexed:
                    index_all(path)
                say(connection, content, user_id="ann" if position % 3 else "bo", reply=content[::-1])
            if data.draw(st.booleans()):
                victim = data.draw(st.integers(0, len(contents) - 1))
                connection.execute(
                    "DELETE FROM sessions WHERE title IN (SELECT title FROM sessions LIMIT 1 OFFSET ?)", [victim]
                )
            parts = [content[i : i + n] for content in contents for i in range(len(content)) for n in (1, 2, 3, 7)]
            asked = data.draw(st.lists(st.sampled_from([*WORDS, *parts]) | texts.filter(encodes), max_size=12))
            for text in filter(None, asked):
                assert numbers(path, text) == scanned(connection, text)
                assert numbers(path, text, user_id="bo") == scanned(connection, text, user_id="bo")
                assert sorted(numbers(path, text, order="relevance"), reverse=True) == scanned(connection, text)


@on_both_engines
def test_every_word_and_part_of_one_is_found_where_a_scan_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        for position, word in enumerate(WORDS):
            say(connection, f"a {word}{word.swapcase()}9", user_id="ann" if position % 3 else "bo", reply=word[::-1])
        parts = [word[start : start + 2] for word in WORDS for start in range(len(word))]
        for text in dict.fromkeys((*WORDS, *parts, "A ", "9", "hElLo", "K", "\u212a", "SS", "\u017f", "FI", "o9")):
            assert numbers(path, text) == scanned(connection, text)
            assert numbers(path, text, user_id="bo") == scanned(connection, text, user_id="bo")


def test_pages_are_parts_of_the_whole_also_across_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_file, "SEGMENT", 16)
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        for number in range(60):
            say(connection, f"common {number}", reply="other")
        assert index_all(path) == 120
        for number in range(10):
            say(connection, f"common late {number}")
        whole = numbers(path, "COMMON")
        assert whole == scanned(connection, "common")
        assert [
            number for start in range(0, 70, 9) for number in numbers(path, "common", limit=9, offset=start)
        ] == whole


def ranked(path: Path, text: str, **page: int) -> list[str]:
    """The texts of the hits, the most relevant first."""
    with opened(path) as connection:
        content = dict(connection.execute("SELECT message_no, content FROM messages"))
    return [content[number] for number in numbers(path, text, order="relevance", **page)]


@on_both_engines
@pytest.mark.parametrize(
    ("asked", "contents"),
    (
        ("cat", ("A CAT.", "cat " + "and a very long tale of something else " * 9, "location, category, concatenate")),
        ("cat", ("cat, cat and cat", "one cat among others", "cat" + " filler" * 60)),
        ("the cat", ("the cat", "bathe cats")),
        ("数据", ("大数据和数据库", "这是一个关于数据的很长的句子")),
        ("ข้อมูล", ("ฐานข้อมูล ข้อมูล", "ฐานข้อมูลขนาดใหญ่มาก")),
        ("😀", ("a😀b😀", "a😀b and more words")),
        ("a", ("a a", "I am a", "banana")),
    ),
)
def test_a_text_that_holds_it_often_as_words_and_little_else_comes_first(
    tmp_path: Path, asked: str, contents: tuple[str, ...]
) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        for content in contents:  # the newest is the least relevant one
            say(connection, content, reply="-")
    assert ranked(path, asked) == list(contents)
    index_all(path)
    assert ranked(path, asked) == list(contents)


@pytest.mark.parametrize("indexed", (False, True))
def test_times_are_those_of_the_messages_also_where_they_were_stored_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    monkeypatch.setattr(search_file, "SEGMENT", 4)
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        for year in (2003, 2001, 2002, 2005, 2004):
            say(connection, "common", reply="-")
            connection.execute(
                "UPDATE messages SET created_at = ? WHERE message_no >= (SELECT MAX(message_no) - 1 FROM messages)",
                [f"{year}-01-01T00:00:00.000Z"],
            )
    if indexed:
        index_all(path)
    for since, until, found in (
        (2002, None, [9, 7, 5, 1]),
        (2004, None, [9, 7]),
        (2005, None, [7]),
        (2006, None, []),
        (2002, 2004, [5, 1]),
        (None, 2002, [3]),
    ):
        times = {"since": since, "until": until}
        given: dict[str, Any] = {name: f"{year}-01-01T00:00:00.000Z" for name, year in times.items() if year}
        assert numbers(path, "common", **given) == found


@on_both_engines
def test_of_equally_relevant_texts_the_newer_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        for _ in range(3):
            say(connection, "same cat", reply="-")
        say(connection, "cat", reply="-")
    assert numbers(path, "cat", order="relevance") == [7, 5, 3, 1]


@on_both_engines
@pytest.mark.parametrize(
    ("bound", "value"),
    (("RANKED_MAX", 5), ("RANKED_CHARACTERS_MAX", 5 * len("common 00")), ("RANKED_CANDIDATES_MAX", 9)),
)
def test_the_newest_hits_are_ranked_and_the_older_ones_follow_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    if bound == "RANKED_CANDIDATES_MAX" and not url_of(tmp_path / "chat.db").startswith("sqlite:"):
        return  # which messages are looked through differs there
    monkeypatch.setattr(rank, bound, value)
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        for number in range(20):
            say(connection, "common" if number in (2, 17) else f"common {number:02}", reply="-")
        for _ in range(2 if bound == "RANKED_CANDIDATES_MAX" else 0):
            say(connection, "not at all", reply="-")  # newer than the first hit: these do not count
    whole = [
        "common",
        "common 19",
        "common 18",
        "common 16",
        "common 15",
        *(f"common {n:02}" for n in range(14, 2, -1)),
    ]
    whole += ["common", "common 01", "common 00"]
    assert ranked(path, "common") == whole
    pages = [text for start in range(0, 20, 3) for text in ranked(path, "common", limit=3, offset=start)]
    assert pages == whole


@on_both_engines
def test_pages_of_ranked_hits_say_whether_there_are_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "RANKED_MAX", 3)
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        for _ in range(6):
            say(connection, "common", reply="-")
    for offset, more in ((0, True), (3, True), (4, False), (6, False)):
        found, has_more = hits(path, Query(text="common"), limit=2, offset=offset)
        assert (len(found), has_more) == (min(2, 6 - offset), more)


@on_both_engines
def test_what_filters_leave_out_is_not_ranked(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        for number in range(6):
            say(connection, "common " * number + "common", user_id="bo" if number % 2 else "ann", reply="common")
    index_all(path)
    given: tuple[dict[str, Any], ...] = ({}, {"session_id": "none"}, {"user_id": "bo", "role": "user"}, {"model": "x"})
    for filters in given:
        whole = numbers(path, "common", **filters)
        assert sorted(numbers(path, "common", order="relevance", **filters), reverse=True) == whole
    assert numbers(path, "common", order="relevance", user_id="bo", role="user") == [11, 7, 3]


def test_segments_of_deleted_messages_go_and_what_is_left_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_file, "SEGMENT", 16)
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        session_ids = [say(connection, f"common {number}") for number in range(40)]
        index_all(path)
        for session_id in session_ids[:30]:
            connection.execute("DELETE FROM sessions WHERE session_id = ?", [session_id])
        with closing(Index(path)) as index:
            assert index.clean() == 4
            while index.step():
                pass
            assert index.clean() == 0
        with closing(sqlite3.connect(search_file.index_path(path))) as indexed:
            assert indexed.execute("SELECT COUNT(*), SUM(documents) FROM segments").fetchone() == (3, 20)
        assert numbers(path, "common") == scanned(connection, "common")


def test_nothing_of_a_deleted_user_stays_in_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of one that was made anew either; segments without it stay as they are."""
    monkeypatch.setattr(search_file, "SEGMENT", 16)
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        for number in range(20):
            say(connection, f"common {number}", user_id="bob")
        say(connection, "Zürich", user_id="ann")
        index_all(path)
        assert grams(path, "zür")
        tombstones.add_tombstone(connection, "user", "ann", now="2026-01-01T00:00:00.000Z")
        connection.execute("DELETE FROM users WHERE user_id = 'ann'")
        say(connection, "Basel", user_id="ann")
        with closing(Index(path)) as index:
            assert index.clean() == 1
            assert not grams(path, "zür")
            while index.step():
                pass
            assert index.clean() == 0
        assert grams(path, "bas")
        with closing(sqlite3.connect(search_file.index_path(path))) as indexed:
            assert indexed.execute("SELECT segment FROM segments ORDER BY indexed_no").fetchall() == [(0,), (1,), (2,)]
        for text in ("common", "Zürich", "Basel"):
            assert numbers(path, text) == scanned(connection, text)


def test_an_index_of_another_version_is_not_searched_and_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        say(connection, "find me")
        index_all(path)
        with closing(sqlite3.connect(search_file.index_path(path))) as index:
            index.execute("DELETE FROM grams_0_data")
            index.execute("PRAGMA user_version = 1")
            index.commit()
        assert numbers(path, "find") == [1]
        assert index_all(path) == 2
        assert numbers(path, "find", user_id="ann") == [1]


@pytest.mark.parametrize("content", (b"", b"no database at all" * 500))
def test_a_missing_or_damaged_index_changes_nothing_but_time(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        say(connection, "find me")
        index_all(path)
        for suffix in ("-wal", "-shm"):
            Path(f"{search_file.index_path(path)}{suffix}").unlink(missing_ok=True)
        search_file.index_path(path).write_bytes(content)
        assert numbers(path, "find") == [1]
        assert index_all(path) == 2
        assert numbers(path, "find") == [1]


def test_an_index_of_another_database_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        say(connection, "one")
        index_all(path)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    with opened(path) as connection:
        say(connection, "two")
    assert index_all(path) == 2
    assert numbers(path, "two") == [1]


def test_only_one_process_fills_the_index(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path), closing(Index(path)), pytest.raises(BlockingIOError):
        Index(path)


def test_a_search_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        say(connection, "word")
    deadline = Deadline(0.01)
    with search_file.opened(path) as connection:
        many = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e9) SELECT MAX(i) FROM n"
        with (
            pytest.raises(TimeOutError),
            search_file.interrupted_when(connection, lambda: deadline.is_over, TimeOutError),
        ):
            connection.execute(many).fetchone()
    with pytest.raises(TimeOutError):
        query.search(path, Query(text="word"), limit=1, deadline=deadline)


@on_both_engines
@pytest.mark.parametrize(
    ("content", "asked", "snippet"),
    (
        ("Hello World", "WORLD", "Hello **World**"),
        ("Die Straße ist lang", "STRASSE", "Die **Straße** ist lang"),
        ("ﬀﬀx", "x", "ﬀﬀ**x**"),
        ("a" * 200 + "b" + "c" * 200, "B", "…" + "a" * 60 + "**b**" + "c" * 100 + "…"),
        ("世界你好", "你", "世界**你**好"),
        ("location of a cat", "cat", "location of a **cat**"),
    ),
)
def test_the_snippet_marks_the_hit(tmp_path: Path, content: str, asked: str, snippet: str) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        say(connection, content, reply="")
    found, _ = hits(path, Query(text=asked), limit=1)
    assert found[0].snippet == snippet


@on_both_engines
async def test_the_route_finds_a_message_with_its_session_and_keeps_to_its_user(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with opened(tmp_path / "stellarchat.db") as connection:
        session_id = say(connection, "the needle <b>", reply="a NEEDLE too")
        say(connection, "needle of another", user_id="bo")
        chat(connection, exchange([user("x")]), outcome(choice("needle", finish_reason="length")))
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as client:

        async def results(**query: Any) -> list[dict[str, Any]]:
            answer = await client.get("/v1/search", params={"q": "needle", **query})
            assert answer.status_code == 200, answer.text
            found: list[dict[str, Any]] = answer.json()["results"]
            return found

        assert len(await results()) == 4
        first = (await results(user_id="ann", role="user"))[0]
        assert first["session"]["session_id"] == session_id
        assert first["message"]["role"] == "user"
        assert first["snippet"] == "the **needle** <b>"
        assert len(await results(session_id=session_id)) == 2
        assert len(await results(session_id=session_id, role="assistant", model="m")) == 1
        assert await results(model="none") == []
        assert await results(until="2001-01-01T00:00:00Z") == []
        assert len(await results(since="2001-01-01T00:00:00Z", user_id="bo")) == 1
        page = (await client.get("/v1/search", params={"q": "needle", "limit": 3})).json()
        assert (len(page["results"]), page["has_more"]) == (3, True)
        by_time = await results(order="newest")
        assert [each["message"]["role"] for each in by_time] == ["assistant", "user", "assistant", "user"]
        assert await results(order="relevance") == await results() != by_time
        wrong_order = await client.get("/v1/search", params={"q": "needle", "order": "oldest"})
        assert (wrong_order.status_code, wrong_order.json()["error"]["param"]) == (400, "order")
        for wrong in ({"q": ""}, {"q": "x" * 1001}, {"q": "x", "role": "boss"}, {"q": "x", "limit": "0"}):
            assert (await client.get("/v1/search", params=wrong)).status_code == 400
        assert (await client.get("/v1/search", params={"q": "x", "session_id": "none"})).status_code == 404
        mine = await client.get("/v1/search", params={"q": "needle"}, headers={"X-User-Id": "bo"})
        assert len(mine.json()["results"]) == 1
