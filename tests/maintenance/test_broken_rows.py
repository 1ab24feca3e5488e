"""A row whose JSON is broken is shown as the text it is, and all the rest comes out of readers and exports."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from click.testing import CliRunner

from proxy.cli import cli
from proxy.maintenance import export
from proxy.maintenance.broken_rows import find_broken_rows
from proxy.maintenance.export import Format, Scope
from proxy.wire import json_text
from tests.long import some_of
from tests.serving import running_proxy, settings_for
from tests.stored import execute, fill, opened, say

_BROKEN = ("not JSON", "[1]", "17", "null", "[" * 100_000)
_COLUMNS = (
    ("messages", "extra"),
    ("messages", "metadata"),
    ("messages", "choice"),
    ("sessions", "metadata"),
    ("exchanges", "metadata"),
    ("exchanges", "error"),
    ("exchanges", "completion"),
    ("exchanges", "context"),
    ("parameters", "data"),
)
_CASES = some_of(product(_COLUMNS, _BROKEN), every=2)  # so each column, and each broken value


def nested(depth: int) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", (300, 799, 900, 100_000))
def test_a_deep_value_is_written_and_its_depths_are_text(depth: int) -> None:
    text = json_text.dumps({"deep": nested(depth), "beside": 1})
    value = json_text.loads(text)
    assert value["beside"] == 1
    assert "bottom" in text
    assert json_text.dumps(value) == text


def test_what_is_cut_off_is_its_json_text() -> None:
    kept = {"a": [1, {"b": None, "c": []}], "d": '\u00fc"'}
    outer: Any = kept
    for _ in range(900):
        outer = [outer]
    read = json_text.loads(json_text.dumps(outer))
    while isinstance(read, list):
        read = read[0]
    inner = json.loads(read)
    while isinstance(inner, list):
        inner = inner[0]
    assert inner == kept


@pytest.mark.parametrize(
    ("table", "column", "broken"),
    [pytest.param(*column, broken, id=f"{'.'.join(column)} {broken[:10]}") for column, broken in _CASES],
)
async def test_all_the_rest_is_read(tmp_path: Path, table: str, column: str, broken: str) -> None:
    settings = settings_for(tmp_path)
    with opened(settings.database_path) as connection:
        fill(connection)
        say(connection, "the rest")
        execute(connection, f"UPDATE {table} SET {column} = ?", (broken,))
        for format_ in get_args(Format):
            assert "the rest" in "".join(export.export(connection, Scope(), format_=format_))
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as client:
        listed = await client.get("/v1/sessions", headers={"x-user-id": "ann"})
        assert listed.status_code == 200, listed.text
        assert listed.json()["sessions"]
        assert (await client.get("/v1/users/ann/history")).status_code == 200
        for session in listed.json()["sessions"]:
            for of in ("messages", "exchanges"):
                answer = await client.get(f"/v1/sessions/{session['session_id']}/{of}")
                assert answer.status_code == 200, answer.text


# What breaks a row, and how `check` names it.
_KINDS = {
    "UPDATE messages SET content = CAST(x'22ff22' AS TEXT)": r"messages \S+ content: it is not UTF-8",
    "UPDATE sessions SET title = CAST(x'ff' AS TEXT)": r"sessions \S+ title: it is not UTF-8",
    "UPDATE users SET username = CAST(x'ff' AS TEXT)": r"users \S+ username: it is not UTF-8",
    "UPDATE exchanges SET error = CAST(x'ff' AS TEXT)": r"exchanges \S+ error: it is not UTF-8",
    "UPDATE messages SET role = x'00ff'": r"messages \S+ role: it is not a text",
    "UPDATE sessions SET title = x'00ff'": r"sessions \S+ title: it is not a text",
    "UPDATE messages SET tokens = -5": r"messages \S+ tokens: it is negative",
    "UPDATE messages SET depth = 'x'": r"messages \S+ depth: it is not a number",
    "UPDATE exchanges SET duration_ms = 'x'": r"exchanges \S+ duration_ms: it is not a number",
    "UPDATE exchanges SET context = '[1,'": r"exchanges \S+ context: it is not JSON",
    "UPDATE messages SET wire = '[1,' ": r"messages \S+ wire: it is not JSON",
    "UPDATE messages SET parent_no = 999999": r"messages \S+ parent_no: it refers to a missing row",
    "UPDATE messages SET parent_no = message_no": r"messages \S+ parent_no: its parent is newer",
    "UPDATE messages SET root_no = 999999": r"messages \S+ root_no: it refers to a missing row",
    "DELETE FROM parameters": r"exchanges \S+ parameters_no: it refers to a missing row",
    "DELETE FROM messages WHERE message_no IN (SELECT parent_no FROM messages)": r"messages \S+ parent_no: it refers",
}


@pytest.mark.parametrize(("statement", "named"), _KINDS.items())
async def test_every_kind_of_broken_row_is_named_and_ends_nothing(tmp_path: Path, statement: str, named: str) -> None:
    settings = settings_for(tmp_path)
    with opened(settings.database_path) as connection:
        fill(connection)
        for switch in ("foreign_keys = OFF", "ignore_check_constraints = ON"):
            execute(connection, f"PRAGMA {switch}")
        execute(connection, statement)
        say(connection, "the rest")
        for format_ in get_args(Format):
            assert "the rest" in "".join(export.export(connection, Scope(), format_=format_))
        assert re.search(named, "\n".join(find_broken_rows(connection, limit=100)))
    export_all = CliRunner().invoke(cli, ["export"], env={"DATABASE_URL": f"sqlite:///{settings.database_path}"})
    assert export_all.exit_code == 1
    assert "the rest" in export_all.output
    assert re.search(named, export_all.stderr)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, headers={"x-user-id": "ann"}) as client:
        listed = (await client.get("/v1/sessions")).json()["sessions"]
        assert listed
        paths = ["/api/sessions", "/v1/users/ann/history", "/v1/chat/completions", "/v1/search?q=Hello"]
        of = ("", "/messages", "/messages?format=openai", "/exchanges", "/branches", "/export?format=openai")
        paths += [f"/v1/sessions/{session['session_id']}{each}" for session in listed for each in of]
        for path in paths:
            assert (await client.get(path)).status_code < 500, path


@pytest.mark.parametrize(
    "broken",
    (
        "UPDATE messages SET content = x'00ff' WHERE session_id = ?",
        "UPDATE sessions SET title = x'00ff' WHERE session_id = ?",
        "UPDATE exchanges SET duration_ms = 'x'"
        " WHERE session_no = (SELECT session_no FROM sessions WHERE session_id = ?)",
        "UPDATE users SET username = x'ff' WHERE user_id = (SELECT user_id FROM sessions WHERE session_id = ?)",
    ),
)
def test_an_export_of_one_user_or_session_names_its_own_broken_rows_alone(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        anns, bobs = say(connection, "ann's text"), say(connection, "bob's text", user_id="bob")
        for switch in ("foreign_keys = OFF", "ignore_check_constraints = ON"):
            execute(connection, f"PRAGMA {switch}")
        execute(connection, broken, (anns,))
    table = broken.split(" ")[1]
    for arguments, is_named in (
        (("--user", "ann"), True),
        (("--session", anns), table != "users"),  # a session's export names its own rows
        (("--user", "bob"), False),
        (("--session", bobs), False),
    ):
        done = CliRunner().invoke(cli, ["export", *arguments], env={"DATABASE_URL": f"sqlite:///{path}"})
        assert done.exit_code == (1 if is_named else 0), (arguments, done.stderr)
        assert (f"stellarchat: {table} " in done.stderr) is is_named
        assert ("bob's text" in done.stdout) is (arguments[1] in ("bob", bobs))
