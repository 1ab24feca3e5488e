"""OpenAI's stored chat completions API on top of exchanges: find, filter, read, change and delete.

A completion is found by upstream's id among the user's own. A client may repeat a request id, from which vLLM builds
the completion id: then the newest exchange has that id, and older ones are found by their own ids.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from proxy.errors import InvalidRequestError, NotFoundError
from proxy.history import branches, deleted_cursors
from proxy.history.positions import Order
from proxy.history.serializers import JSON, openai_message
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.page import Page
from proxy.storage.queries.completions import Candidate
from proxy.storage.queries.exchanges import COMPLETION_PREFIX, ExchangeRow
from proxy.storage.queries.messages import Message
from proxy.storage.removal import remove_exchange
from proxy.wire import json_text
from proxy.wire.message import readable, to_openai

# A chat that failed has no completion.
_SHOWN = frozenset({"completed", "incomplete"})
# Exchanges examined per read, so that a filter with few matches does not block a reader for long.
_STEP = 500
_FIRST, _LAST = "", "~"  # sort before and after every id
# A page is built in memory; its items may have about this total size.
PAGE_BYTES = 8 * 2**20
# Request parameters that have another meaning in a completion.
_NOT_PARAMETERS = frozenset(
    {"id", "object", "created", "choices", "usage", "system_fingerprint", "moderation", "status", "messages"}
)
# Request parameters that OpenAI returns even if the request did not set them.
_PARAMETERS: JSON = {
    "tools": None,
    "tool_choice": None,
    "response_format": None,
    "seed": None,
    "temperature": None,
    "top_p": None,
    "presence_penalty": None,
    "frequency_penalty": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which of a user's completions to list. Every `metadata` pair must match."""

    user_id: str
    session_id: str | None = None
    model: str | None = None
    metadata: Mapping[str, str]
    order: Order = "asc"

    @property
    def is_narrow(self) -> bool:
        """Whether the filter skips exchanges."""
        return self.model is not None or bool(self.metadata)


# --- reading


def find_exchange(connection: Connection, id_: str, *, user_id: str | None) -> ExchangeRow:
    """The exchange with upstream's or its own id. Raises NotFoundError, also for another user's exchange."""
    exchange_id = queries.completions.find_stored_exchange(connection, id_, user_id=user_id)
    row = queries.exchanges.get_exchange(connection, exchange_id or id_.removeprefix(COMPLETION_PREFIX))
    if row is None or row.status not in _SHOWN or user_id not in (None, row.user_id):
        raise NotFoundError("No such chat completion.")
    return row


def get_completion(connection: Connection, id_: str, *, user_id: str | None) -> JSON:
    """The completion as upstream sent it, plus its request's parameters and metadata."""
    return _completion(connection, find_exchange(connection, id_, user_id=user_id))


def start_of(connection: Connection, wanted: Filter, after: str | None) -> str:
    """The position where a list starts. Raises InvalidRequestError."""
    if after is None:
        return _FIRST if wanted.order == "asc" else _LAST
    try:
        return find_exchange(connection, after, user_id=wanted.user_id).exchange_id
    except NotFoundError as exc:
        deleted = deleted_cursors.completions.find(wanted.user_id, after)
        if deleted is not None:
            return deleted
        raise InvalidRequestError("There is no such chat completion to list after.", param="after") from exc


def scan(connection: Connection, wanted: Filter, *, after: str, limit: int) -> tuple[list[str], str | None]:
    """The matching exchanges among the next ones, and where to continue (None: no more exchanges)."""
    step = _STEP if wanted.is_narrow else limit
    newest_first = wanted.order == "desc"
    if wanted.session_id is None:
        found = queries.completions.scan_exchanges_of_user(
            connection, wanted.user_id, after=after, limit=step, newest_first=newest_first
        )
    else:
        found = queries.completions.scan_exchanges_of_session(
            connection, wanted.session_id, after=after, limit=step, newest_first=newest_first
        )
    fitting = [candidate.exchange_id for candidate in found if _fits(candidate, wanted)]
    return fitting, found[-1].exchange_id if len(found) == step else None


def get_completions(connection: Connection, exchange_ids: Sequence[str], *, limit: int) -> JSON:
    """One page of completions; deleted ones are skipped."""
    rows = (queries.exchanges.get_exchange(connection, exchange_id) for exchange_id in exchange_ids)
    return page_of((_completion(connection, row) for row in rows if row is not None), limit=limit)


def list_messages(connection: Connection, id_: str, *, user_id: str | None, page: Page, order: Order) -> JSON:
    """One page of the messages of a completion's request."""
    row = find_exchange(connection, id_, user_id=user_id)
    path = [] if row.leaf_no is None else queries.messages.list_path(connection, row.leaf_no)[::-1]
    numbers = branches.as_requested(branches.as_far_as_sent(path, row), row)
    prefix = _public_id(connection, row) + "-"
    positions = list(range(len(numbers)) if order == "asc" else reversed(range(len(numbers))))
    if page.after is not None:
        positions = positions[_index_after(positions, page.after, id_) :]
    shown = (
        branches.get_message(connection, numbers[position], show=_store_message) | {"id": f"{prefix}{position}"}
        for position in positions
        if queries.export.find_message_id(connection, numbers[position])
        is not None  # a context may refer to a deleted message
    )
    return page_of(shown, limit=page.limit)


def page_of(items: Iterable[JSON], *, limit: int) -> JSON:
    """An OpenAI list object of the first items. It has fewer than `limit` if they are large, but at least one."""
    data: list[JSON] = []
    size = 0
    for item in items:
        if len(data) == limit or size >= PAGE_BYTES:
            return page_json(data, has_more=True)
        data.append(item)
        size += len(json_text.dumps(item))
    return page_json(data, has_more=False)


def page_json(data: Sequence[JSON], *, has_more: bool) -> JSON:
    """An OpenAI list object."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def pairs_of(metadata: str | None) -> dict[str, str]:
    """Metadata as OpenAI defines it: string values. Other values are returned as JSON text."""
    value = json_text.stored(metadata)
    if not isinstance(value, dict):
        return {}
    return {key: each if isinstance(each, str) else json_text.dumps(each) for key, each in value.items()}


def unix_seconds(timestamp: str) -> int:
    """A stored timestamp as Unix time."""
    return int(datetime.fromisoformat(timestamp).timestamp())


# --- writing


def update_metadata(connection: Connection, id_: str, *, user_id: str | None, metadata: Mapping[str, str]) -> JSON:
    """Replaces a completion's metadata and returns it. Its session, which is part of the output, cannot change."""
    row = find_exchange(connection, id_, user_id=user_id)
    kept = dict(metadata)
    session_id = kept.pop("session_id", None)
    if session_id is not None and session_id != row.session_id:
        raise InvalidRequestError("A chat completion stays in its session.", param="metadata.session_id")
    queries.exchanges.update_exchange_metadata(connection, exchange_id=row.exchange_id, metadata=json_text.dumps(kept))
    return _completion(connection, find_exchange(connection, COMPLETION_PREFIX + row.exchange_id, user_id=user_id))


def delete_completion(connection: Connection, id_: str, *, user_id: str | None) -> JSON:
    """Deletes the exchange and its replies. The request's messages belong to the session and stay."""
    row = find_exchange(connection, id_, user_id=user_id)
    remove_exchange(connection, row)
    deleted_cursors.completions.remember(row.user_id, id_, row.exchange_id)
    return {"object": "chat.completion.deleted", "id": id_, "deleted": True}


# --- serializing


def _fits(candidate: Candidate, wanted: Filter) -> bool:
    if candidate.status not in _SHOWN or wanted.model not in (None, candidate.model):
        return False
    if not wanted.metadata:
        return True
    pairs = pairs_of(candidate.metadata)
    return all(pairs.get(key) == value for key, value in wanted.metadata.items())


def _public_id(connection: Connection, row: ExchangeRow) -> str:
    given = row.completion_id
    if given is not None and given.startswith(COMPLETION_PREFIX):
        newest = queries.completions.find_stored_exchange(connection, given, user_id=row.user_id)
        if newest == row.exchange_id:
            return given
    return COMPLETION_PREFIX + row.exchange_id


def _completion(connection: Connection, row: ExchangeRow) -> JSON:
    sent = json_text.stored_object(row.completion, "completion")
    parameters = json_text.stored_object(row.parameters, "parameters")
    shown = {key: value for key, value in parameters.items() if key not in _NOT_PARAMETERS}
    created = sent.get("created") if row.completion_created is None else row.completion_created
    own: JSON = {
        "id": _public_id(connection, row),
        "object": "chat.completion",
        "created": created if isinstance(created, int) else unix_seconds(row.created_at),
        "model": row.model or "",
        "choices": _choices(connection, row),
        "usage": sent.get("usage") or _usage(row),
        "request_id": row.request_id,
        "metadata": pairs_of(row.metadata) | {"session_id": row.session_id},
        "status": row.status,
    }
    return _PARAMETERS | {"input_user": parameters.get("user")} | shown | sent | own


def _usage(row: ExchangeRow) -> JSON | None:
    """The usage from its columns if they contain all of it; None if the reply had none."""
    usage = {
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "total_tokens": row.total_tokens,
    }
    return {key: value for key, value in usage.items() if value is not None} or None


def _choices(connection: Connection, row: ExchangeRow) -> list[JSON]:
    numbers = queries.messages.list_replies(connection, row)
    choices = [branches.get_message(connection, number, show=_choice) for number in numbers]
    if choices or row.status == "completed":
        return choices
    # The reply was cut before any content arrived.
    message = {"role": "assistant", "content": None}
    return [{"index": 0, "message": message, "logprobs": None, "finish_reason": None}]


def _choice(row: Message, blobs: dict[str, str]) -> JSON:
    choice: JSON = {"index": 0, "message": _message(row, blobs), "logprobs": None, "finish_reason": None}
    return choice | json_text.stored_object(row.choice, "choice")


def _store_message(row: Message, blobs: dict[str, str]) -> JSON:
    message = openai_message(row, blobs)
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    text = None if content is None else readable(content)
    return message | {"content": text, "content_parts": parts}


def _message(row: Message, blobs: Mapping[str, str]) -> JSON:
    message: dict[str, Any] = to_openai(
        role=row.role, content=row.content, content_form=row.content_form, extra=row.extra, blobs=blobs
    )
    return message


def _index_after(positions: Sequence[int], after: str, id_: str) -> int:
    """The index where a page starts. Only the number in `after` counts: the completion's id may have changed."""
    number = after.rpartition("-")[2]
    if not re.fullmatch("[0-9]{1,9}", number) or int(number) not in positions:
        raise InvalidRequestError(f"{id_} has no such message.", param="after")
    return positions.index(int(number)) + 1
