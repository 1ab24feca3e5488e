"""What the store of each relay that records holds of the numbered exchanges that were sent through it."""

import contextlib
import json
import re
import sqlite3
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import peers, texts
from tests.bench.relays import Place

_NUMBER = re.compile(r"Question (\d{8}) of today")
_READ_AT_MOST_S = 120


@dataclass(slots=True)
class Kept:
    """One exchange: `state` is what the store calls it, `whole` whether that means a whole reply."""

    text: str
    state: str
    whole: bool
    times: int = 1


Store = dict[int, Kept]
_Row = tuple[str, Kept]  # the request, in which its number is found


class StoreError(Exception):
    """The store is not as the reader knows it, as may be that of another version."""


def read(key: str, place: Place) -> Store:
    """All numbered exchanges of a relay's store, which may be running; none where there is no store yet."""
    try:
        return _by_number(READERS[key](place))
    except (sqlite3.Error, subprocess.SubprocessError, LookupError, TypeError, ValueError) as exc:
        raise StoreError(f"its store cannot be read: {exc!r}") from exc


def _by_number(rows: Iterable[_Row]) -> Store:
    store: Store = {}
    for request, kept in rows:
        found = _NUMBER.search(request)
        if found is None:
            continue
        number = int(found[1])
        if number in store:
            store[number].times += 1
        else:
            store[number] = kept
    return store


def _stellarchat(place: Place) -> Iterator[_Row]:
    sql = """SELECT asked.content, e.status,
                    (SELECT reply.content FROM messages AS reply
                     WHERE reply.exchange_no = e.exchange_no AND reply.role = 'assistant')
             FROM exchanges AS e JOIN messages AS asked ON asked.message_no = e.leaf_no"""
    for asked, status, text in _rows(place.directory / peers.DATABASE, sql):
        yield asked, Kept(text or "", status, status == "completed")


def _observe(place: Place) -> Iterator[_Row]:
    """Of a reply it says no more than its HTTP status, and when it was over."""
    sql = "SELECT request_body, response_body, response_status, completed_at, is_stream FROM request_records"
    for request, body, status, completed_at, is_stream in _rows(place.directory / peers.DATABASE, sql):
        is_over = completed_at is not None
        state = "completed" if is_over else "not completed"
        yield request.decode(), Kept(_text(body or b"", is_stream), state, is_over and status == 200)


def _ogx(place: Place) -> Iterator[_Row]:
    sql = "SELECT input_messages, choices FROM inference_store"
    for messages, choices in _rows(place.directory / peers.OGX_DATABASE, sql):
        choice = json.loads(choices)[0]
        yield messages, Kept(choice["message"]["content"] or "", choice["finish_reason"], whole=True)


def _agentic(place: Place) -> Iterator[_Row]:
    """A response names the items of its history; the last ones are its own."""
    database = place.directory / peers.DATABASE
    items = {item_id: json.loads(data) for item_id, data in _rows(database, "SELECT id, data FROM items")}
    for history, metadata in _rows(database, "SELECT history_item_ids, metadata FROM responses"):
        own = [items[item_id] for item_id in json.loads(history or "[]") if item_id in items]
        asked = json.dumps([item for item in own if item.get("role") == "user"])
        text = texts.of_reply({"output": [item for item in own if item.get("role") == "assistant"]})
        status = json.loads(metadata)["response_snapshot"]["status"]
        yield asked, Kept(text, status, status == "completed")


def _litellm(place: Place) -> Iterator[_Row]:
    """Lines of JSON lists: the batches that its callback posted."""
    for record in (record for batch in _lines(place) for record in batch):
        response = record.get("response")
        text = texts.of_reply(response) if isinstance(response, dict) else ""
        yield json.dumps(record.get("messages")), Kept(text, record["status"], record["status"] == "success")


def _nginx_lua(place: Place) -> Iterator[_Row]:
    for record in _lines(place):
        request = record.get("request") or ""
        text = _text((record["response"] or "").encode(), _asks_for_a_stream(request))
        yield request, Kept(text, "whole" if record["whole"] else "not whole", record["whole"])


def _mitmproxy(place: Place) -> Iterator[_Row]:
    """Flows are read by mitmproxy's own reader, in its environment."""
    python = Path(place.command("mitmdump", "pip install mitmproxy")).parent / "python"
    argv = [str(python), "-c", _READ_FLOWS, str(place.directory / peers.FLOWS)]
    out = subprocess.run(argv, capture_output=True, check=True, timeout=_READ_AT_MOST_S).stdout
    for request, body, error, status in map(json.loads, out.splitlines()):
        text = _text(body.encode(), _asks_for_a_stream(request))
        yield request, Kept(text, error or str(status), error is None and status == 200)


# A flow that a kill cut off ends the file.
_READ_FLOWS = """
import json, pathlib, sys
from mitmproxy import exceptions, io
path = pathlib.Path(sys.argv[1])
with open(path if path.exists() else "/dev/null", "rb") as file:
    try:
        for flow in io.FlowReader(file).stream():
            answer, error = flow.response, flow.error and flow.error.msg
            bodies = [one and one.raw_content or b"" for one in (flow.request, answer)]
            asked, said = (body.decode("utf-8", "replace") for body in bodies)
            print(json.dumps([asked, said, error, answer and answer.status_code]))
    except exceptions.FlowReadException:
        pass
"""


def _rows(database: Path, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20)) as connection:
        return connection.execute(sql).fetchall()


def _lines(place: Place) -> Iterator[Any]:
    """Those that are whole: the last one may be on its way."""
    path = place.directory / peers.LINES
    return map(json.loads, path.read_bytes().split(b"\n")[:-1] if path.exists() else ())


def _asks_for_a_stream(request: str) -> bool:
    return texts.parsed(request).get("stream") is True


def _text(body: bytes, is_stream: bool) -> str:
    return texts.of_events(body) if is_stream else texts.of_body(body)


READERS: dict[str, Callable[[Place], Iterator[_Row]]] = {
    "relaxed": _stellarchat,
    "strict": _stellarchat,
    "strict-responses": _stellarchat,
    "nginx-lua": _nginx_lua,
    "agentic": _agentic,
    "mitm-stream": _mitmproxy,
    "ogx": _ogx,
    "observe": _observe,
    "litellm-log": _litellm,
}
