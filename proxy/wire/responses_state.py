"""A Responses request that names something of ours, with the history it means put in front of its input. Pure.

Every byte of the body but those of the three keys and of the input stays as it came.
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
    """Whether a request names something that may be ours."""
    return any(request.get(key) is not None for key in STATE_KEYS) or bool(references_of(request))


def previous_id_of(request: JSON) -> str | None:
    """The response that a request goes on from."""
    return string(request.get("previous_response_id"))


def conversation_id_of(request: JSON) -> str | None:
    """The conversation that a request belongs to."""
    given = request.get("conversation")
    return string(given.get("id")) if isinstance(given, dict) else string(given)


def references_of(request: JSON) -> list[str]:
    """The ids of the items that the input refers to."""
    given = [string(item.get("id")) for item in objects(request.get("input")) if _is_reference(item)]
    return [item_id for item_id in given if item_id]


def _is_reference(item: JSON) -> bool:
    # A reference needs no type: an object with an id alone is one, too.
    return item.get("type") == _REFERENCE or (set(item) == {"id"} and isinstance(item["id"], str))


def spliced(
    body: bytes, request: JSON, *, history: Sequence[JSON], items: Mapping[str, JSON], is_known: bool
) -> tuple[bytes, JSON]:
    """Body and request with `history` in front of the input, and references replaced by the `items` they name.

    With `is_known` the keys that name what the history is of are taken out of the body. The request keeps them: they
    are recorded.
    """
    given = request.get("input")
    resolved = _resolved(given, items)
    before = [for_engine(item) for item in history]
    said = [{"role": "user", "content": resolved}] if isinstance(resolved, str) else resolved
    if said is not None and not isinstance(said, list):
        return body, request  # upstream says what is wrong with it
    changed = {**request, "input": [*before, *(said or [])]}
    gone = STATE_KEYS if is_known else ()
    parts = members(body)
    if parts is None:  # UTF-16 or the like
        return json_text.dumps({key: value for key, value in changed.items() if key not in gone}).encode(), changed
    texts = [text for key, text in parts if key != "input" and key not in gone]
    own = next((text for key, text in reversed(parts) if key == "input"), None)
    texts.append(b'"input":' + _input_text(own, given, resolved, before))
    return b"{" + b",".join(texts) + b"}", changed


def for_engine(item: JSON) -> JSON:
    """A stored item as an engine takes it, which keeps nothing: without what only its maker can read, and never as one
    to be completed rather than answered."""
    kept = {key: value for key, value in item.items() if key != "encrypted_content"}
    if kept.get("status") in ("incomplete", "in_progress"):
        kept["status"] = "completed"
    if kept.get("role") == "assistant" and "id" not in kept and isinstance(kept.get("content"), list):
        kept["content"] = readable(kept["content"])  # output_text stands in items that have an id alone
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
    history = json_text.dumps(list(before)).encode()[1:-1]
    if own is None or given is None:
        return b"[" + history + b"]"
    text = own[own.index(b":") + 1 :].strip() if resolved is given else json_text.dumps(resolved).encode()
    if isinstance(given, str):
        return b"[" + history + (b"," if history else b"") + b'{"role":"user","content":' + text + b"}]"
    rest = text[1:-1].strip()
    return b"[" + history + (b"," if history and rest else b"") + rest + b"]"
