"""The access log: a JSON line per chat and per other request, collected on the event loop and written in batches.

A log record for each chat would cost more than its SQL.
"""

import random
import time
from collections import deque
from typing import Any, NamedTuple

from starlette.types import Scope

from proxy.ids import timestamp
from proxy.storage.exchange import Exchange, Outcome
from proxy.telemetry.logs import file_of_requests
from proxy.wire import headers
from proxy.wire.surrogates import encodable

_LOGGER = "stellarchat.access"
_LINES_MAX = 20_000  # between two writes; more lines are dropped
_FIELD_LENGTH = 256


class _Line(NamedTuple):
    unix_time: float
    message: str
    fields: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        fields = {key: _encodable(value) for key, value in self.fields.items()}
        time_ = timestamp(self.unix_time)
        return {"time": time_, "level": "info", "logger": _LOGGER, "message": self.message, **fields}


class AccessLog:
    """The lines not written yet. Only a sample of the requests is logged; failures always are."""

    def __init__(self, *, sample: float) -> None:
        self._sample = sample
        self._file = file_of_requests()
        self._lines: deque[_Line] = deque()

    def add_chat(self, exchange: Exchange, outcome: Outcome) -> None:
        """Adds the line of a chat that has ended."""
        if not self._takes(failed=outcome.status == "failed"):
            return
        model = model_of(exchange, outcome)
        fields = {
            "request_id": _cut(exchange.request_id),
            "session_id": exchange.session.session_id,
            "user_id": _cut(exchange.user_id),
            "model": None if model is None else _cut(model),
            "status": outcome.status,
            "http_status": outcome.http_status,
            "time_to_first_token_ms": outcome.time_to_first_token_ms,
            "duration_ms": outcome.duration_ms,
        }
        self._lines.append(_Line(time.time(), "chat", fields))

    def add_request(self, scope: Scope, *, status: int, seconds: float) -> None:
        """Adds the line of any other request: without its content, not even the query string."""
        if not self._takes(failed=status >= 500 or status == 0):
            return
        request_id = headers.value_of(scope["headers"], b"x-request-id")
        fields = {
            "method": scope["method"],
            "path": _cut(scope["path"]),
            "status": status,
            "request_id": None if request_id is None else _cut(headers.text_of(request_id)),
            "duration_ms": round(seconds * 1000),
        }
        self._lines.append(_Line(time.time(), "request", fields))

    def write(self) -> None:
        """Writes the lines added so far. Runs in a thread, while the event loop may add more."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        if lines and self._file is not None:
            self._file.write_lines(line.as_json() for line in lines)

    def _takes(self, *, failed: bool) -> bool:
        if self._file is None or len(self._lines) >= _LINES_MAX:
            return False
        return failed or self._sample >= 1 or random.random() < self._sample  # noqa: S311 - a sample


def model_of(exchange: Exchange, outcome: Outcome) -> str | None:
    """The model that answered, else the one in the request."""
    reply = outcome.reply
    model = reply.model if reply is not None and isinstance(reply.model, str) else exchange.request.get("model")
    return model if isinstance(model, str) else None


def _cut(text: str) -> str:
    return text if len(text) <= _FIELD_LENGTH else text[:_FIELD_LENGTH] + "…"


def _encodable(value: Any) -> Any:
    return encodable(value) if isinstance(value, str) else value
