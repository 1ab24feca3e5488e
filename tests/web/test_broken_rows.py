"""Pages over rows that hold what is never stored: each says what it can, and none is a 500."""

from base64 import b64encode
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import httpx

from tests.long import some_of
from tests.serving import running_proxy, settings_for
from tests.stored import IMAGE, chat, choice, exchange, execute, opened, outcome, user
from tests.web.visiting import assert_harmless, dom_of

# What a column may hold after damage, or after another program: SQL.
VALUES = ("x'00ff'", "CAST(x'ff' AS TEXT)", "-5", "1e300", "'x'", "''", "'[1,'", "'[[1]]'", "NULL")
_TABLES = {
    "users": "user_id = (SELECT user_id FROM sessions WHERE session_no = {n})",
    "sessions": "session_no = {n}",
    "messages": "session_no = {n}",
    "exchanges": "session_no = {n}",
    "parameters": "parameters_no IN (SELECT parameters_no FROM exchanges WHERE session_no = {n})",
    "blobs": "digest IN (SELECT digest FROM message_blobs JOIN messages USING (message_no) WHERE session_no = {n})",
}
# By these a row is found: a wrong one is another row.
_KEYS = frozenset({"session_no", "message_no", "exchange_no", "user_no", "parameters_no", "digest"})


def _columns(path: Path) -> Iterator[tuple[str, str]]:
    with opened(path) as connection:
        for table in _TABLES:
            for row in connection.execute(f"PRAGMA table_info({table})").fetchall():
                if row[1] not in _KEYS:
                    yield table, row[1]


def _break(path: Path, table: str, column: str, value: str) -> str | None:
    """The id of a new session in which this column of this table holds this value; None where SQLite refuses it."""
    with opened(path) as connection:
        for switch in ("foreign_keys = OFF", "ignore_check_constraints = ON"):
            execute(connection, f"PRAGMA {switch}")
        content = [
            {"type": "text", "text": f"{column} {value}"},
            {"type": "image_url", "image_url": {"url": f"{IMAGE}{b64encode(f'{table} {column}'.encode()).decode()}"}},
        ]
        asked = exchange(
            [user(content)],
            user_id=f"{table} {column} {value}",
            tools=[{"type": "function", "name": f"{table} {column}"}],
            temperature=0.5,
        )
        session_id = chat(connection, asked, outcome(choice("yes", reasoning="because")))
        number = connection.execute("SELECT session_no FROM sessions WHERE session_id = ?", (session_id,)).fetchone()[0]
        try:
            execute(connection, f"UPDATE {table} SET {column} = {value} WHERE {_TABLES[table].format(n=number)}")
        except Exception:  # noqa: BLE001 - NOT NULL and UNIQUE hold whatever is switched off: there is no such row
            return None
    return session_id


def _addresses(path: Path, session_id: str) -> list[str]:
    """Every page about a session, found by the ids that are still there."""
    with opened(path) as connection:
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        number = connection.execute("SELECT session_no FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
        if number is None:
            return [f"/ui/s/{session_id}"]
        messages = connection.execute("SELECT message_id FROM messages WHERE session_no = ?", number).fetchall()
        exchanges = connection.execute("SELECT exchange_id FROM exchanges WHERE session_no = ?", number).fetchall()
        digests = connection.execute(
            "SELECT digest FROM message_blobs JOIN messages USING (message_no) WHERE session_no = ?", number
        ).fetchall()
    session = f"/ui/s/{session_id}"
    found = [session, f"{session}/rename", f"{session}/live", f"/v1/sessions/{session_id}"]
    found += [f"{session}/export?format={each}" for each in ("jsonl", "markdown")]
    found += [f"/v1/sessions/{session_id}/{each}" for each in ("messages", "exchanges", "branches")]
    for (id_,) in messages:
        if isinstance(id_, str) and id_.isascii():
            found += [f"{session}?m={id_}", f"{session}/copy?m={id_}&as=json"]
            found += [f"{session}/m/{id_}/text", f"{session}/m/{id_}/rich"]
            found += [f"{session}/m/{id_}/blob/{digest}" for (digest,) in digests]
    return found + [f"/ui/x/{id_}" for (id_,) in exchanges if isinstance(id_, str) and id_.isascii()]


LISTS = ("/ui", "/ui?status=failed", "/ui?model=m", "/ui/search?q=yes", "/ui/usage", "/ui/keys", "/v1/sessions")


async def test_no_page_over_a_broken_row_is_a_500(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    path = settings.database_path
    failed = []
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=60) as http:
        values = cycle(VALUES)
        broken = [(*each, _break(path, *each, next(values))) for each in some_of(_columns(path), every=5)]
        for table, column, session_id in broken:
            for address in [] if session_id is None else _addresses(path, session_id):
                answer = await http.get(address)
                if answer.status_code >= 500:
                    failed.append((table, column, address.partition("?")[0], answer.text[:80]))
                elif address.startswith("/ui/") and answer.headers["content-type"].startswith("text/html"):
                    assert_harmless(dom_of(answer))
        lists = [(address, await http.get(address)) for address in LISTS]
        failed += [("", "", address, answer.text[:80]) for address, answer in lists if answer.status_code >= 500]
    assert failed == []
