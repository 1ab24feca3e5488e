"""`/ui/s/{id}/copy`: a conversation up to a message, as OpenAI JSON or as a curl command for its original endpoint."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.responses import Response

from proxy.errors import NotFoundError
from proxy.history import branches
from proxy.history.dialects import wire_of
from proxy.history.serializers import openai_message
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.queries.sessions import Session
from proxy.web import as_sent
from proxy.web.actions import session_of
from proxy.web.curl import curl
from proxy.web.visits import Visit
from proxy.wire import completions, json_text
from proxy.wire.chat import CHAT
from proxy.wire.endpoints import endpoint_of

JSON = dict[str, Any]

# A longer conversation is not offered for copying; the API and the export have it whole.
_COPIED_CHARACTERS = 1_000_000
_NEXT = {"role": "user", "content": "(your next message)"}
_NO_MODEL = "MODEL"


async def copy(visit: Visit) -> Response:
    """The conversation up to a message, in a form that can be sent again."""
    is_curl = visit.query.get("as") == "curl"
    message_id = visit.query.get("m", "")
    session = await session_of(visit)
    read = partial(_conversation, session=session, message_id=message_id)
    said = await visit.services.read(read)
    text = "" if said is None else _command(visit, said) if is_curl else _openai(said)
    return await visit.page(
        "copy.html",
        session=session,
        message_id=message_id,
        heading="The conversation as a curl command" if is_curl else "The conversation as OpenAI JSON",
        text=text,
        problem="It is too long to be copied." if said is None else None,
    )


@dataclass(frozen=True, slots=True)
class _Said:
    """A conversation up to a message, and the parameters of its last request."""

    rows: list[as_sent.Row]
    model: str
    path: str = CHAT.path
    wire: JSON = field(default_factory=dict)
    parameters: JSON = field(default_factory=dict)


def _openai(said: _Said) -> str:
    body = {"model": said.model, "messages": [message for message, _ in said.rows]}
    return json.dumps(body, indent=2, ensure_ascii=False)


def _command(visit: Visit, said: _Said) -> str:
    is_chat = said.path != completions.PATH
    goes_on = is_chat and said.rows[-1:] and said.rows[-1][0].get("role") == "assistant"
    rows = [*said.rows, (_NEXT, None)] if goes_on else said.rows
    body = {"model": said.model, **as_sent.request_again(said.path, rows, said.wire, said.parameters)}
    return curl(visit, body, path=said.path)


def _conversation(connection: Connection, *, session: Session, message_id: str) -> _Said | None:
    """The messages up to one, as they were sent to the model; None if they are too large."""
    message_no = queries.messages.find_message_no(connection, message_id, session_id=session.session_id)
    if message_no is None:
        raise NotFoundError("There is no such message in this session.")
    path = queries.messages.list_path(connection, message_no)[::-1]
    numbers, exchange = branches.as_sent_by(connection, path)
    rows = _rows(connection, numbers)
    if rows is None:
        return None
    if exchange is None:
        return _Said(rows, _NO_MODEL)
    if len(exchange.parameters) > _COPIED_CHARACTERS:
        return None
    return _Said(
        rows,
        exchange.model or _NO_MODEL,
        endpoint_of(exchange.endpoint).path,
        wire_of(exchange),
        json_text.stored_object(exchange.parameters, "parameters"),
    )


def _rows(connection: Connection, numbers: Sequence[int]) -> list[as_sent.Row] | None:
    rows: list[as_sent.Row] = []
    size = 0
    for number_ in numbers:
        row = queries.messages.get_message(connection, number_)
        if row is None:
            continue
        blobs = queries.messages.list_message_blobs(connection, number_) if row.content_form == "json" else {}
        size += len(row.content) + len(row.extra or "") + len(row.wire or "") + sum(map(len, blobs.values()))
        if size > _COPIED_CHARACTERS:
            return None
        rows.append((openai_message(row, blobs), json_text.stored_object(row.wire, "wire") or None))
    return rows
