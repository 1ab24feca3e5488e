"""JSON responses from a database read: encoded in the reader's thread, and sent in pieces."""

from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from starlette.responses import Response

from proxy.downstream.whole_response import WholeResponse
from proxy.services import Services
from proxy.storage.connection import Connection
from proxy.storage.fair_turns import current_caller
from proxy.wire import json_text


async def read_response(services: Services, work: Callable[[Connection], Any]) -> Response:
    """The JSON response with what `work` returns. Raises APIError."""
    return json_response(services, await services.read(lambda connection: encoded(work(connection))))


def json_response(services: Services, text: bytes) -> Response:
    return WholeResponse(
        text,
        backlog=services.backlog,
        caller=current_caller.get()(),
        media_type="application/json",
        headers={"date": formatdate(usegmt=True)},
    )


def encoded(value: Any) -> bytes:
    """JSON text. The items of an object's lists are encoded one by one: while one is, no other thread can run."""
    if not isinstance(value, dict):
        return json_text.encoded(value)
    members = (json_text.dumps(key) + ":" + _member(member) for key, member in value.items())
    return ("{" + ",".join(members) + "}").encode()


def _member(value: Any) -> str:
    return "[" + ",".join(map(json_text.dumps, value)) + "]" if isinstance(value, list) else json_text.dumps(value)
