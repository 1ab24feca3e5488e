"""Serializes users, sessions, messages and exchanges to the JSON of the HTTP API. Pure."""

from collections.abc import Mapping
from typing import Any

from proxy.storage.queries.exchanges import ExchangeRow
from proxy.storage.queries.messages import Message
from proxy.storage.queries.sessions import Session
from proxy.storage.queries.users import User
from proxy.wire import json_text
from proxy.wire.message import to_openai

JSON = dict[str, Any]

_JSON_COLUMNS = ("parameters", "metadata", "error")
# Row numbers differ after an import; `upstream` names the operator's hosts and is shown to admins only.
_INTERNAL_COLUMNS = frozenset(
    {
        "exchange_no",
        "session_no",
        "leaf_no",
        "context",
        "linked_count",
        "completion",
        "completion_created",
        "worker_id",
        "wire",
        "upstream",
    }
)


def user_json(user: User) -> JSON:
    """A user in the history API."""
    return {
        "user_id": user.user_id,
        "username": user.username,
        "created_at": user.created_at,
        "last_active": user.last_active,
    }


def session_json(session: Session) -> JSON:
    """A session in `/v1/sessions`."""
    return {
        "session_id": session.session_id,
        "user_id": session.user_id,
        "external_id": session.external_id,
        "title": session.title,
        "is_active": bool(session.is_active),
        "metadata": json_text.stored_object(session.metadata, "metadata"),
        "message_count": session.message_count,
        "tokens": session.tokens,
        "created_at": session.created_at,
        "updated_at": session.updated_at,
    }


def openai_message(row: Message, blobs: Mapping[str, str]) -> JSON:
    """A message in OpenAI's shape that can be sent back; empty keys are omitted."""
    message = _as_sent(row, blobs)
    # In OpenAI's format `content` is always present, and null if there is none.
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def message_json(row: Message, blobs: Mapping[str, str]) -> JSON:
    """A message in `/v1/sessions`: its metadata, and its other OpenAI keys if present."""
    others = _as_sent(row, blobs)
    choice = json_text.stored_object(row.choice, "choice")
    others.update((key, choice.get(key)) for key in ("finish_reason", "logprobs") if choice.get(key) is not None)
    content = others.pop("content", None)
    own: JSON = {
        "message_id": row.message_id,
        "session_id": row.session_id,
        "parent_id": row.parent_id,
        "exchange_id": row.exchange_id,
        "role": row.role,
        "content": content,
        "model": row.model,
        "tokens": row.tokens,
        "metadata": json_text.stored_object(row.metadata, "metadata"),
        "status": row.status,
        "siblings": row.siblings,
        "created_at": row.created_at,
    }
    return own | {key: value for key, value in others.items() if value is not None and key not in own}


def exchange_json(row: ExchangeRow, *, names_upstream: bool) -> JSON:
    """An exchange in `/v1/sessions`."""
    columns = {name: getattr(row, name) for name in ExchangeRow.__slots__ if name not in _INTERNAL_COLUMNS}
    if names_upstream:
        columns["upstream"] = row.upstream
    shown = columns | {name: json_text.stored(columns[name]) for name in _JSON_COLUMNS}
    return shown | {"wire": json_text.stored(row.wire)} if row.wire else shown


def plain_session(session: JSON) -> JSON:
    """A session in `/api/sessions`."""
    names = ("title", "created_at", "updated_at", "is_active", "user_id", "metadata", "message_count", "tokens")
    return {"id": session["session_id"]} | {name: session[name] for name in names}


def plain_message_json(row: Message, blobs: Mapping[str, str]) -> JSON:
    """A stored message in `/api/sessions`."""
    return plain_message(message_json(row, blobs))


def plain_message(message: JSON) -> JSON:
    """A message in `/api/sessions`, including its other OpenAI keys."""
    left_out = ("message_id", "parent_id", "exchange_id", "siblings", "status", "model")
    return {"id": message["message_id"]} | {key: value for key, value in message.items() if key not in left_out}


def _as_sent(row: Message, blobs: Mapping[str, str]) -> JSON:
    return to_openai(role=row.role, content=row.content, content_form=row.content_form, extra=row.extra, blobs=blobs)
