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
_KEPT_LENGTH = _FIELD_LENGTH + 1  # until a line is written; one more tells that a text is truncated
_OF_CHATS = (
    "request_id",
    "session_id",
    "user_id",
    "model",
    "status",
    "http_status",
    "time_to_first_token_ms",
    "duration_ms",
)
_OF_REQUESTS = ("method", "path", "status", "request_id", "duration_ms")


class _Line(NamedTuple):
    unix_time: float
    message: str
    fields: tuple[str, ...]
    values: tuple[Any, ...]

    def as_json(self) -> dict[str, Any]:
        fields = {name: _cut(value) for name, value in zip(self.fields, self.values, strict=True)}
        time_ = timestamp(self.unix_time)
        return {"time": time_, "level": "info", "logger": _LOGGER, "message": self.message, **fields}


class AccessLog:
    """The lines not written yet. Only a sample of the requests is logged; failures always are."""

    def __init__(self, *, sample: float) -> None:
        self._sample = sample
        self._file = file_of_requests()
        self._lines: deque[_Line] = deque()

    def add_chat(self, exchange: Exchange, outcome: Outcome, model: str | None) -> None:
        """Adds the line of a chat that has ended."""
        if not self._takes(failed=outcome.status == "failed"):
            return
        values = (
            exchange.request_id[:_KEPT_LENGTH],
            exchange.session.session_id,
            exchange.user_id[:_KEPT_LENGTH],
            None if model is None else model[:_KEPT_LENGTH],
            outcome.status,
            outcome.http_status,
            outcome.time_to_first_token_ms,
            outcome.duration_ms,
        )
        self._lines.append(_Line(time.time(), "chat", _OF_CHATS, values))

    def add_request(self, scope: Scope, *, status: int, seconds: float) -> None:
        """Adds the line of any other request: without its content, not even the query string."""
        if not self._takes(failed=status >= 500 or status == 0):
            return
        request_id = headers.value_of(scope["headers"], b"x-request-id")
        values = (
            scope["method"],
            scope["path"][:_KEPT_LENGTH],
            status,
            None if request_id is None else headers.text_of(request_id)[:_KEPT_LENGTH],
            round(seconds * 1000),
        )
        self._lines.append(_Line(time.time(), "request", _OF_REQUESTS, values))

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


def _cut(value: Any) -> Any:
    """A value as the log can hold it: texts are truncated, and without lone surrogates."""
    if not isinstance(value, str):
        return value
    return encodable(value if len(value) <= _FIELD_LENGTH else value[:_FIELD_LENGTH] + "…")
