"""A row whose JSON is broken is shown as the text it is, and all the rest comes out of readers and exports."""

import json
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

from proxy.maintenance import export
from proxy.maintenance.export import Format, Scope
from proxy.wire import json_text
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


@pytest.mark.parametrize("broken", _BROKEN, ids=lambda text: text[:10])
@pytest.mark.parametrize(("table", "column"), _COLUMNS)
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
