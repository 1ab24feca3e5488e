"""Replaces references to stored state in a Responses request by their content. Pure.

The references are `previous_response_id`, `conversation` and item references in the input. Only the bytes of these
keys change.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from proxy.wire import json_text
from proxy.wire.chat_request import members
from proxy.wire.dialect import JSON, objects, string
from proxy.wire.message import readable
from proxy.wire.responses import STATE_KEYS

_REFERENCE = "item_reference"


def names_something(request: JSON) -> bool:
    """Whether a request refers to state that may be ours."""
    return any(request.get(key) is not None for key in STATE_KEYS) or bool(references_of(request))


def previous_id_of(request: JSON) -> str | None:
    """The id of the response that a request continues."""
    return string(request.get("previous_response_id"))


def conversation_id_of(request: JSON) -> str | None:
    """The conversation that a request belongs to."""
    given = request.get("conversation")
    return string(given.get("id")) if isinstance(given, dict) else string(given)


def references_of(request: JSON) -> list[str]:
    """The ids of the input's item references."""
    given = [string(item.get("id")) for item in objects(request.get("input")) if _is_reference(item)]
    return [item_id for item_id in given if item_id]


def _is_reference(item: JSON) -> bool:
    # The type is optional: an object with nothing but an id is a reference, too.
    return item.get("type") == _REFERENCE or (set(item) == {"id"} and isinstance(item["id"], str))


def spliced(
    body: bytes, request: JSON, *, history: Sequence[JSON], items: Mapping[str, JSON], is_known: bool
) -> tuple[bytes, JSON]:
    """Inserts `history` before the input and replaces references by the `items` they name.

    With `is_known`, the keys that name the history are removed from the body. The request object keeps them, because
    they are recorded.
    """
    given = request.get("input")
    resolved = _resolved(given, items)
    before = [for_engine(item) for item in history]
    said = [{"role": "user", "content": resolved}] if isinstance(resolved, str) else resolved
    if said is not None and not isinstance(said, list):
        return body, request  # invalid; upstream reports the error
    changed = {**request, "input": [*before, *(said or [])]}
    gone = STATE_KEYS if is_known else ()
    parts = members(body)
    if parts is None:  # UTF-16, for example
        return json_text.encoded({key: value for key, value in changed.items() if key not in gone}), changed
    texts = [text for key, text in parts if key != "input" and key not in gone]
    own = next((text for key, text in reversed(parts) if key == "input"), None)
    texts.append(b'"input":' + _input_text(own, given, resolved, before))
    return b"{" + b",".join(texts) + b"}", changed


def for_engine(item: JSON) -> JSON:
    """A stored item for an engine without state: without encrypted content, and never as an incomplete reply to
    continue."""
    kept = {key: value for key, value in item.items() if key != "encrypted_content"}
    if kept.get("status") in ("incomplete", "in_progress"):
        kept["status"] = "completed"
    if kept.get("role") == "assistant" and "id" not in kept and isinstance(kept.get("content"), list):
        kept["content"] = readable(kept["content"])  # `output_text` parts are valid only in items with an id
    return kept


def _resolved(given: Any, items: Mapping[str, JSON]) -> Any:
    if not isinstance(given, list) or not items:
        return given
    return [
        for_engine(items[item["id"]])
        if isinstance(item, dict) and _is_reference(item) and item.get("id") in items
        else item
        for item in given
    ]


def _input_text(own: bytes | None, given: Any, resolved: Any, before: Sequence[JSON]) -> bytes:
    history = json_text.encoded(list(before))[1:-1]
    if own is None or given is None:
        return b"[" + history + b"]"
    text = own[own.index(b":") + 1 :].strip() if resolved is given else json_text.encoded(resolved)
    if isinstance(given, str):
        return b"[" + history + (b"," if history else b"") + b'{"role":"user","content":' + text + b"}]"
    rest = text[1:-1].strip()
    return b"[" + history + (b"," if history and rest else b"") + rest + b"]"
