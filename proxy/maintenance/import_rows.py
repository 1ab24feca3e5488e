"""Validates the rows of an import: column types, and JSON where it is expected. Pure.

The file may come from someone else. Error messages are short and never contain the row itself.
"""

import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from proxy.wire import json_text
from proxy.wire.surrogates import is_encodable

Row = dict[str, Any]
Check = Callable[[Any], bool]

# Ours have 36 characters, clients' session ids up to 128; upstreams' are not limited.
_ID_LENGTH = 512
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_HASH = re.compile(r"[0-9a-f]{2,128}")
# SQLite's integers are signed 64-bit: https://sqlite.org/datatype3.html
_NUMBER_MAX = 2**63 - 1


class RowError(ValueError):
    """A row is invalid; the message says why."""


def checked(kind: str, row: Any) -> Row:
    """Returns the row after validating all its columns. Raises RowError."""
    if not isinstance(row, dict):
        raise RowError("it is not an object")
    for column, is_right in _COLUMNS[kind].items():
        if column not in row:
            raise RowError(f"{column} is missing")
        if not is_right(row[column]):
            raise RowError(f"{column} is not what it should be")
    for column, is_right in _OPTIONAL.items():
        if row.get(column) is not None and column not in _COLUMNS[kind] and not is_right(row[column]):
            raise RowError(f"{column} is not what it should be")
    if kind == "blob" and sha256(row["data"].encode()).hexdigest() != row["digest"]:
        raise RowError("data does not match digest")
    return row


def _text(value: Any) -> bool:
    return isinstance(value, str) and is_encodable(value)


def _id(value: Any) -> bool:
    return _text(value) and 0 < len(value) <= _ID_LENGTH and "\0" not in value


def _moment(value: Any) -> bool:
    # Times are compared as text, so another form of the same time would be sorted wrongly.
    return isinstance(value, str) and _MOMENT.fullmatch(value) is not None


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _NUMBER_MAX


def _hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) % 2 == 0 and _HASH.fullmatch(value) is not None


def _json(value: Any) -> bool:
    return _text(value) and _parsed(value) is not _NO_JSON


def _json_object(value: Any) -> bool:
    return _text(value) and isinstance(_parsed(value), dict)


def _context(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, list) and len(each) == 2 and _or_none(_count)(each[0]) and _id(each[1]) for each in value
    )


def _digests(value: Any) -> bool:
    return isinstance(value, list) and all(map(_hash, value))


def _pieces(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and each.isascii() for each in value)


def _or_none(is_right: Check) -> Check:
    return lambda value: value is None or is_right(value)


def _one_of(*choices: Any) -> Check:
    return lambda value: value in choices


_NO_JSON = object()


def _parsed(text: str) -> Any:
    try:
        return json_text.loads(text)
    except ValueError:
        return _NO_JSON


_COLUMNS: Mapping[str, Mapping[str, Check]] = {
    "user": {
        "user_id": _id,
        "username": _or_none(_text),
        "created_at": _moment,
        "last_active": _moment,
    },
    "blob": {"digest": _hash, "data": _text},
    "session": {
        "session_id": _id,
        "user_id": _id,
        "external_id": _or_none(_id),
        "title": _text,
        "is_active": _one_of(0, 1),
        "metadata": _or_none(_json_object),
        "created_at": _moment,
        "updated_at": _moment,
        "leaf_id": _or_none(_id),
    },
    "message": {
        "message_id": _id,
        "session_id": _id,
        "parent_id": _or_none(_id),
        "chain_hash": _hash,
        "exchange_id": _or_none(_id),
        "role": _text,
        "content": _text,
        "content_form": _one_of("text", "json", "none"),
        "extra": _or_none(_json_object),
        "choice": _or_none(_json_object),
        "model": _or_none(_text),
        "tokens": _count,
        "status": _one_of("completed", "incomplete", "failed"),
        "metadata": _or_none(_json_object),
        "created_at": _moment,
    },
    "exchange": {
        "exchange_id": _id,
        "session_id": _id,
        "user_id": _id,
        "leaf_id": _or_none(_id),
        "context": _or_none(_context),
        "linked_count": _or_none(_count),
        "endpoint": _text,
        "model": _or_none(_text),
        "status": _one_of("in_progress", "completed", "incomplete", "failed"),
        "http_status": _or_none(_count),
        "finish_reason": _or_none(_text),
        "parameters": _json_object,
        "metadata": _or_none(_json),
        "request_id": _or_none(_text),
        "completion_id": _or_none(_text),
        "completion": _or_none(_json),
        "error": _or_none(_json),
        "worker_id": _or_none(_text),
        "created_at": _moment,
        "completed_at": _or_none(_moment),
    },
}
_TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens", "cached_tokens")
_TIMES = ("time_to_first_token_ms", "duration_ms", "queued_ms", "head_ms", "stored_ms")
_OPTIONAL: Mapping[str, Check] = {
    **dict.fromkeys((*_TOKENS, *_TIMES, "completion_created"), _count),
    "blobs": _digests,
    "fragments": _pieces,
    "wire": _json,
    "upstream": _id,
}
