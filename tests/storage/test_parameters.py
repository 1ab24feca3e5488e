"""Parameters of requests: what is the same is stored once, and all of it comes back."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.maintenance import export, imports
from proxy.storage import parameters, queries
from proxy.storage.page import Page
from tests.chats import Chats, Message, said, user
from tests.engines import on_sqlite

TOOLS = [
    {"type": "function", "function": {"name": f"tool {number}", "description": "what it does " * 300}}
    for number in range(16)
]


def talk(chats: Chats, turns: int, *, session: str = "s", **fields: Any) -> list[dict[str, Any]]:
    """Turns of one conversation, each with the same fields and those that are made anew: their requests."""
    history: list[Message] = []
    requests = []
    for turn in range(turns):
        history.append(user(f"question {turn}"))
        exchange = chats.begin(history, session=session)
        exchange.request |= {key: value() if callable(value) else value for key, value in fields.items()}
        requests.append({key: value for key, value in exchange.request.items() if key != "messages"})
        chats.finish(exchange, said(f"answer {turn}"))
        history.append(said(f"answer {turn}"))
    return requests


def read(chats: Chats) -> list[dict[str, Any]]:
    """The parameters of every exchange, session by session."""
    ids = [row[0] for row in chats.connection.execute("SELECT session_id FROM sessions ORDER BY session_no")]
    pages = [queries.exchanges.list_exchanges(chats.connection, session_id=id_, page=Page(limit=1000)) for id_ in ids]
    return [json.loads(row.parameters) for page in pages for row in page]


@pytest.mark.parametrize(
    "fresh",
    (
        {"request_id": lambda: uuid4().hex},
        {"client_metadata": lambda: {"turn_id": str(uuid4()), "sandbox": "x" * 100}},
        {"traceId": lambda: str(uuid4()), "seed": lambda: uuid4().int % 2**31},
        {"idempotency_key": lambda: str(uuid4()), "kv_transfer_params": lambda: {"remote": str(uuid4())}},
    ),
)
def test_keys_that_change_with_every_request_do_not_store_the_rest_again(chats: Chats, fresh: dict[str, Any]) -> None:
    requests = talk(chats, 20, tools=TOOLS, temperature=0.5, **fresh)
    assert (chats.count("parameters"), chats.count("tools")) == (1, 1)
    assert read(chats) == requests


def test_unknown_key_that_changes_does_not_store_the_tools_again(chats: Chats) -> None:
    requests = talk(chats, 20, tools=TOOLS, unheard_of=lambda: str(uuid4()))
    assert (chats.count("parameters"), chats.count("tools")) == (20, 1)
    assert read(chats) == requests


def test_one_user_s_tools_are_the_same_in_every_session_and_go_with_the_last(chats: Chats) -> None:
    requests = talk(chats, 2, session="one", tools=TOOLS, session_id="one")
    requests += talk(chats, 2, session="two", tools=TOOLS, session_id="two", stream=True)
    requests += talk(chats, 2, session="three", tools=TOOLS[:3])
    assert (chats.count("parameters"), chats.count("tools")) == (3, 2)
    assert read(chats) == requests
    for name, left in (("one", 2), ("three", 1), ("two", 0)):
        with chats.connection.transaction():
            queries.sessions.delete_session(chats.connection, chats.named(name) or "")
        assert chats.count("tools") == left


@on_sqlite
def test_fifty_turns_cost_one_copy_of_the_tools(chats: Chats, tmp_path: Path) -> None:
    """The bound is of the contract; sizes of files are exact, so nothing of the machine is in it."""
    plain = Chats(tmp_path / "plain.db")
    talk(plain, 50)
    talk(chats, 50, tools=TOOLS, request_id=lambda: uuid4().hex)
    assert len(json.dumps(TOOLS)) > 60_000
    sizes = [_size(each) for each in (plain, chats)]
    plain.connection.close()
    assert sizes[1] <= 1.1 * (sizes[0] + len(json.dumps(TOOLS)))


def _size(chats: Chats) -> int:
    chats.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    pages, size = (chats.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    return int(pages * size)


def test_parameters_of_schema_8_are_read_as_they_are(chats: Chats) -> None:
    requests = talk(chats, 1, tools=TOOLS, request_id="r", temperature=1)
    old = json.dumps(requests[0])
    chats.connection.execute("UPDATE parameters SET data = ?, tools_no = NULL", (old,))
    chats.connection.execute("UPDATE exchanges SET own_parameters = NULL")
    assert read(chats) == requests


def test_export_has_them_whole_and_an_import_stores_them_once(chats: Chats, tmp_path: Path) -> None:
    requests = talk(chats, 5, tools=TOOLS, request_id=lambda: uuid4().hex)
    lines = list(export.export(chats.connection, export.Scope(), format_="jsonl"))
    exchanges = [row for row in map(json.loads, lines) if row["kind"] == "exchange"]
    assert [json.loads(row["parameters"]) for row in exchanges] == requests
    assert not any("tools" in row or "own_parameters" in row for row in exchanges)
    other = Chats(tmp_path / "other.db")
    imports.load(other.connection, [line.encode() for line in lines], progress=lambda _: None)
    assert (other.count("parameters"), other.count("tools")) == (1, 1)
    assert read(other) == requests
    other.connection.close()


def test_parameters_nested_too_deeply_leave_the_others_readable() -> None:
    assert json.loads(parameters.join("null", "[1]", '{"request_id":"a"}')) == {"tools": [1], "request_id": "a"}
    assert parameters.join("null", None, None) == "{}"


@given(
    st.dictionaries(
        st.sampled_from(("tools", "model", "request_id", "x_metadata", "seed", "temperature", "stop", "é")),
        st.none() | st.integers() | st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.booleans()),
    )
)
def test_all_that_is_split_comes_back(request: dict[str, Any]) -> None:
    parts = parameters.split(request)
    assert json.loads(parameters.join(parts.common, parts.tools, parts.own)) == request


@pytest.mark.parametrize("length", (3, 64, 65, 5000))
def test_keys_of_any_length_are_stored_where_their_end_says(length: int) -> None:
    own, common = "_id".rjust(length, "k"), "k" * length
    for _ in range(2):
        parts = parameters.split({own: 1, common: 2})
        assert (parts.own, parts.common) == (json.dumps({own: 1}, separators=(",", ":")), f'{{"{common}":2}}')


def test_only_short_keys_are_remembered() -> None:
    parameters._is_usual_own.cache_clear()
    parameters.split({"model": "m", "k" * 65: 1})
    assert parameters._is_usual_own.cache_info().currsize == 1
