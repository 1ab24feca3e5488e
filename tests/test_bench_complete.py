"""The benchmark of what is kept: a small run on our own row, and the readers of other programs' stores on samples."""

import contextlib
import json
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the benchmark reads /proc", allow_module_level=True)

from tests.bench import callers, comparison, complete, peers, phases, relays, stores, wire
from tests.bench.callers import Got, Killed, Kind
from tests.bench.stores import Kept

SMALL = complete.Sizes(
    whole=20,
    streams=2,
    left=2,
    streaming=3,
    streaming_s=1.5,
    bursting=2,
    burst_s=0.3,
    quiet_s=1.0,
    settle_s=0.1,
)
PACED = Kind(stream=True, tokens=20, rate=10)


def asked(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Question {number:08} of today: what is it?"}]


def reply(text: str) -> dict[str, object]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def stream(*texts: str) -> str:
    """The events of a stream that was cut within the one after these."""
    events = (json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) for text in texts)
    return "".join(f"data: {event}\n\n" for event in events) + 'data: {"choices": [{"ind'


def fill(path: Path, table: str, columns: str, *rows: Sequence[object]) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE {table} ({columns})")
        places = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {table} VALUES ({places})", rows)


def observe(folder: Path) -> None:
    columns = "request_body, response_body, response_status, completed_at, is_stream"
    whole, cut = (json.dumps({"messages": asked(number)}).encode() for number in (1, 2))
    rows = [
        (whole, json.dumps(reply("Paris")).encode(), 200, "now", 0),
        (cut, stream("Once", " upon").encode(), 200, None, 1),
    ]
    fill(folder / peers.DATABASE, "request_records", columns, *rows)


def ogx(folder: Path) -> None:
    rows = [
        (json.dumps(asked(number)), json.dumps(reply(text)["choices"]))
        for number, text in ((1, "Paris"), (2, "Once upon"))
    ]
    fill(folder / peers.OGX_DATABASE, "inference_store", "input_messages, choices", *rows)


def agentic(folder: Path) -> None:
    def item(text: str) -> str:
        part = {"type": "output_text", "text": text}
        return json.dumps({"type": "message", "role": "assistant", "content": [part]})

    questions = [(f"asked-{number}", json.dumps(asked(number)[0])) for number in (1, 2)]
    replies = [("said-1", item("Paris")), ("said-2", item("Once upon"))]
    fill(folder / peers.DATABASE, "items", "id, data", *questions, *replies)
    statuses = ((1, "completed"), (2, "incomplete"))
    rows = [
        (json.dumps([f"asked-{number}", f"said-{number}"]), json.dumps({"response_snapshot": {"status": status}}))
        for number, status in statuses
    ]
    fill(folder / peers.DATABASE, "responses", "history_item_ids, metadata", *rows)


def litellm(folder: Path) -> None:
    whole = {"messages": asked(1), "response": reply("Paris"), "status": "success"}
    cut = {"messages": asked(2), "response": reply("Once upon"), "status": "failure"}
    lines(folder, [whole], [cut])


def nginx_lua(folder: Path) -> None:
    whole, cut = (json.dumps({"messages": asked(number), "stream": number == 2}) for number in (1, 2))
    lines(
        folder,
        {"request": whole, "response": json.dumps(reply("Paris")), "whole": True},
        {"request": cut, "response": stream("Once", " upon"), "whole": False},
    )


def lines(folder: Path, *values: object) -> None:
    """The last one is on its way yet."""
    (folder / peers.LINES).write_text("".join(json.dumps(value) + "\n" for value in values) + '{"request": "Que')


@pytest.mark.parametrize(
    ("key", "write", "state"),
    (
        ("observe", observe, "not completed"),
        ("ogx", ogx, "stop"),
        ("agentic", agentic, "incomplete"),
        ("litellm-log", litellm, "failure"),
        ("nginx-lua", nginx_lua, "not whole"),
    ),
)
def test_a_store_is_read_with_what_it_calls_each_reply(
    tmp_path: Path, key: str, write: Callable[[Path], None], state: str
) -> None:
    write(tmp_path)
    store = stores.read(key, relays.Place(0, tmp_path, 0, ""))
    assert store.keys() == {1, 2}
    assert (store[1].text, store[1].whole) == ("Paris", True)
    assert (store[2].text, store[2].state) == ("Once upon", state)
    assert store[2].whole is (key == "ogx")


def test_a_store_of_another_version_is_no_empty_store(tmp_path: Path) -> None:
    fill(tmp_path / peers.OGX_DATABASE, "inference_store", "input, choices", (json.dumps(asked(1)), "[]"))
    with pytest.raises(stores.StoreError, match="no such column: input_messages"):
        stores.read("ogx", relays.Place(0, tmp_path, 0, ""))


def test_everything_sent_through_our_own_row_is_found(tmp_path: Path) -> None:
    strict = next(relay for relay in relays.RELAYS if relay.key == "strict")
    with relays.upstream() as upstream:
        found = complete.check(strict, upstream.port, commands="", work=tmp_path, sizes=SMALL)
    assert found.errors == {}
    assert found.whole == comparison.Recorded(sent=20, ended=20, stored=20)
    assert found.streams == comparison.Recorded(sent=2, ended=2, stored=2)
    assert (found.left.cut, found.left.with_text, found.left.short_s) == (2, 2, 0)
    assert found.left.states == {"incomplete": 2}
    assert (found.killed.lost, found.burst.lost) == (0, 0)
    assert found.burst.acknowledged > 0
    assert len(found.cells()) == len(comparison.HEAD) - 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_stored_of_acknowledged_replies_is_lost() -> None:
    got = [Got(1, "a", ended=True, at=7.0), Got(2, "b", ended=True, at=9.0), Got(3, "c", at=10.0)]
    assert comparison.lost(Killed(got, callers.WHOLE, at=10.0), {2: Kept("b", "stop", whole=True)}) == comparison.Lost(
        2, 1, 3.0
    )


def test_another_text_is_not_what_was_sent() -> None:
    got = [Got(number, "Paris", ended=True) for number in range(3)]
    store = {
        0: Kept("Paris", "stop", whole=True),
        1: Kept("Par", "stop", whole=True),
        2: Kept("Paris", "cut", whole=False),
    }
    assert comparison.recorded(got, store).stored == 1


def test_a_cut_stream_says_how_many_seconds_are_missing_or_too_many() -> None:
    half = "".join(wire.token_texts(20)[:10])
    whole = "".join(wire.token_texts(20))
    store = {1: Kept(whole, "stop", whole=True), 2: Kept("", "stop", whole=True), 3: Kept("Once", "stop", whole=True)}
    cut = comparison.cut([Got(number, half) for number in range(4)], store, PACED)
    assert (cut.cut, cut.stored, cut.with_text, cut.states) == (4, 3, 2, {"stop": 3})
    assert cut.more_s == pytest.approx(PACED.seconds_of(whole) - PACED.seconds_of(half))
    assert cut.short_s == pytest.approx(PACED.seconds_of(half) - PACED.seconds_of("Once"))
    assert str(comparison.cut([Got(1, half)], {}, PACED)) == "0 of 1"


@pytest.mark.parametrize(
    "relay", [each for each in peers.RELAYS if each.key != "strict-responses"], ids=lambda each: each.key
)
def test_a_program_that_is_not_installed_says_how_to_install_it(relay: relays.Relay, tmp_path: Path) -> None:
    assert relay.launch is not None
    with pytest.raises(relays.NotInstalledError, match=r"^not installed: (pip|apt) install "):
        relay.launch(relays.Place(1, tmp_path, 1, str(tmp_path)))


def test_a_row_whose_clients_ask_for_responses_is_measured_with_them() -> None:
    plan = phases.Plan(
        only=("json", "first_20", "chunk"), chunk_streams=5, chunk_tokens=5, first_token_s=0.2, json_s=0.2
    )
    with relays.upstream() as upstream:
        direct = relays.Running(upstream.port, None, relays.Api(endpoint="responses"))
        measured = phases.measure(plan, lambda: contextlib.nullcontext(direct), upstream)
    assert measured.errors == {}
    assert {"json_rps", "first_20_p99_ms"} <= measured.figures.keys()
