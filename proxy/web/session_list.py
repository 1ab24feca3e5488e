"""Queries the session list: by latest activity, or, with a status filter, by the latest exchange with that status.

A filter that excludes most sessions is applied to a limited number of them; the next page continues from there.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import blake2b
from typing import Any

from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.web.rendering import ago

JSON = dict[str, Any]

_PAGE = 50
_STEP, _LOOKED_AT_MAX = 500, 3000  # 0.1 s of SQL where nothing fits
_EXCHANGES = 20  # per session, to determine its models and state
_MODELS_SHOWN = 3
_LAST_DAY = "9999-12-31"  # the columns are DATETIME, so a bare number would be compared as a number
_LAST_NUMBER, _DIGITS_MAX = 2**62, 19


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters of the session list."""

    model: str | None = None
    status: str | None = None
    since_day: str | None = None
    until_day: str | None = None

    @property
    def is_set(self) -> bool:
        """Whether any filter is set."""
        return self != Filters()

    @property
    def since(self) -> str:
        """The start of the first day."""
        return self.since_day or ""

    @property
    def until(self) -> str:
        """The end (exclusive) of the last day."""
        if self.until_day is None or self.until_day >= _LAST_DAY:
            return _LAST_DAY
        return (date.fromisoformat(self.until_day) + timedelta(days=1)).isoformat()


@dataclass(frozen=True, slots=True)
class Found:
    """One page of the list."""

    sessions: list[JSON]
    after: str | None  # where the next page starts, if there is one
    is_first_visit: bool = False


def find(connection: Connection, *, user_id: str | None, filters: Filters, after: str) -> Found:
    """One page of the list, starting at `after`."""
    walk = _by_activity if filters.status is None else _by_status
    sessions: list[JSON] = []
    place = after
    for looked_at, row in enumerate(walk(connection, user_id, filters, after)):
        if len(sessions) == _PAGE or looked_at == _LOOKED_AT_MAX:
            return Found(sessions, place)
        place = row["place"]
        session = _session(connection, row) if row["fits"] else None
        if session is not None and filters.status in (None, session["status"]):
            sessions.append(session)
    is_empty = not (sessions or after) and not queries.web.session_exists(connection, user_id=user_id)
    return Found(sessions, None, is_first_visit=is_empty)


def _by_activity(connection: Connection, user_id: str | None, filters: Filters, after: str) -> Iterator[JSON]:
    moment, _, session_id = after.partition("~")
    before = (moment, session_id) if moment and session_id else (filters.until, "")
    step = _STEP if filters.model else _PAGE + 1
    while True:
        rows = queries.web.list_sessions(
            connection, user_id=user_id, model=filters.model, since=filters.since, before=before, limit=step
        )
        for row in rows:
            before = row["updated_at"], row["session_id"]
            yield row | {"place": "~".join(before)}
        if len(rows) < step:
            return


def _by_status(connection: Connection, user_id: str | None, filters: Filters, after: str) -> Iterator[JSON]:
    assert filters.status is not None
    before = int(after) if after.isascii() and after.isdecimal() and len(after) < _DIGITS_MAX else _LAST_NUMBER
    while True:
        rows = queries.web.list_sessions_by_status(
            connection,
            filters.status,
            user_id=user_id,
            model=filters.model,
            since=filters.since,
            until=filters.until,
            before=before,
            limit=_STEP,
        )
        for row in rows:
            before = row["exchange_no"]
            yield row | {"place": str(before)}
        if len(rows) < _STEP:
            return


def _session(connection: Connection, row: JSON) -> JSON:
    exchanges = queries.web.list_newest_exchanges(connection, row["session_no"], limit=_EXCHANGES)
    models = list(dict.fromkeys(each["model"] for each in exchanges if each["model"]))
    states = [each["status"] for each in exchanges]
    status = "in_progress" if "in_progress" in states else states[0] if states else None
    session = row | {"models": models[:_MODELS_SHOWN], "status": status}
    shown = json.dumps([session, ago(row["updated_at"])])
    return session | {"version": blake2b(shown.encode(), digest_size=8).hexdigest()}
