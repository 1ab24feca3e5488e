"""Converts messages to items of OpenAI's Conversations API; `given_items` does the reverse. Pure.

A reply may become several items: reasoning, message, and one per tool call. An item's id consists of its kind, the
message id and, for a call, a digest of the call, so that it stays the same when another call is deleted.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from proxy.history.serializers import JSON, openai_message
from proxy.storage.queries.messages import Message
from proxy.wire import json_text
from proxy.wire.dialect import objects

# OpenAI's name for them in `include`.
LOGPROBS = "message.output_text.logprobs"

# OpenAI's prefixes, which its SDKs' users rely on; a message id never contains an underscore.
_ID = re.compile(r"(rs|msg|fc|ctc|fco)_([^_]{1,128})(?:_([0-9a-z]+))?")
# The order of items within a message.
_RANK = {"rs": 0, "msg": 1, "fc": 2, "ctc": 2, "fco": 3}
# vLLM's name today, and that of older versions and of other servers.
_REASONING = ("reasoning", "reasoning_content")
_SAID = ("content", "refusal", "annotations", "audio")


@dataclass(frozen=True, slots=True)
class ItemId:
    """A parsed item id."""

    text: str
    kind: str
    message_id: str
    call: str | None

    @property
    def rank(self) -> int:
        """The item's position among the items of its message."""
        return _RANK[self.kind]


def parse_id(text: str) -> ItemId | None:
    """Parses an item id; None if it is not one."""
    match = _ID.fullmatch(text)
    return None if match is None else ItemId(text, match[1], match[2], match[3])


# --- messages to items


def items_of(row: Message, blobs: dict[str, str], *, include: Collection[str] = ()) -> list[JSON]:
    """A message's items in order. If the message was cut, the last item is incomplete."""
    message = openai_message(row, blobs)
    if row.role in ("tool", "function"):
        items = [_output(message, row.message_id)]
    elif row.role == "assistant":
        items = _reply(message, row, with_logprobs=LOGPROBS in include)
    else:
        items = [_message_item(message, row, [_input_part(part) for part in _parts(message.get("content"))])]
    for item in items:
        item["status"] = "completed"
    # Items come in the order of generation, so only the last one can have been cut.
    items[-1]["status"] = "completed" if row.status == "completed" else "incomplete"
    return items


def _reply(message: JSON, row: Message, *, with_logprobs: bool) -> list[JSON]:
    items: list[JSON] = []
    thought = next((message[key] for key in _REASONING if isinstance(message.get(key), str) and message[key]), None)
    if thought is not None:
        content = [{"type": "reasoning_text", "text": thought}]
        items.append({"id": f"rs_{row.message_id}", "type": "reasoning", "summary": [], "content": content})
    calls = [_call(call, suffix, row.message_id) for suffix, call in calls_of(message)]
    parts = [_output_part(part, message) for part in _parts(message.get("content"))]
    if message.get("refusal"):
        parts.append({"type": "refusal", "refusal": message["refusal"]})
    if with_logprobs and parts:
        parts[0]["logprobs"] = _logprobs(row)
    if parts or not (items or calls):
        items.append(_message_item(message, row, parts))
    return items + calls


def _message_item(message: JSON, row: Message, parts: list[JSON]) -> JSON:
    return {"id": f"msg_{row.message_id}", "type": "message", "role": message["role"], "content": parts}


def _parts(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _input_part(part: Any) -> JSON:
    """Converts a part of a request message; a part unknown to OpenAI's conversations is left unchanged."""
    if not isinstance(part, dict):
        return {"type": "input_text", "text": part if isinstance(part, str) else json_text.dumps(part)}
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text"):
        return {"type": "input_text", "text": str(part.get("text") or "")}
    image, file = part.get("image_url"), part.get("file")
    if kind == "image_url":
        given = image if isinstance(image, dict) else {"url": image}
        detail = given.get("detail") or "auto"
        return {"type": "input_image", "image_url": given.get("url"), "detail": detail, "file_id": None}
    if kind == "file" and isinstance(file, dict):
        return {"type": "input_file", **file}
    return part


def _output_part(part: Any, message: JSON) -> JSON:
    if isinstance(part, dict) and part.get("type") == "refusal":
        return part
    text = part.get("text") if isinstance(part, dict) else part
    annotations = [_annotation(each) for each in objects(message.get("annotations"))]
    return {"type": "output_text", "text": str(text or ""), "annotations": annotations, "logprobs": []}


def _annotation(annotation: JSON) -> JSON:
    """Moves a citation's fields up: chat completions nest them one level deeper."""
    kind = str(annotation.get("type"))
    inner = annotation.get(kind)
    return {"type": kind, **inner} if isinstance(inner, dict) else annotation


def _logprobs(row: Message) -> list[JSON]:
    choice = json_text.stored_object(row.choice, "choice")
    logprobs = choice.get("logprobs")
    tokens = objects(logprobs.get("content")) if isinstance(logprobs, dict) else []
    return [
        {**_logprob(token), "top_logprobs": [_logprob(other) for other in objects(token.get("top_logprobs"))]}
        for token in tokens
    ]


def _logprob(token: JSON) -> JSON:
    return {"token": token.get("token"), "logprob": token.get("logprob"), "bytes": token.get("bytes") or []}


def calls_of(message: Mapping[str, Any]) -> list[tuple[str, JSON]]:
    """A reply's calls with the id suffix of each item. The legacy `function_call` counts as one."""
    calls: list[tuple[str, JSON]] = []
    seen: Counter[str] = Counter()  # calls with the same id are numbered
    old = message.get("function_call")
    for call in [*objects(message.get("tool_calls")), *([{"function": old}] if isinstance(old, dict) else [])]:
        digest = blake2b(json_text.encoded(call.get("id") or call), digest_size=4).hexdigest()
        calls.append((f"{digest}{seen[digest] or ''}", call))
        seen[digest] += 1
    return calls


def _call(call: JSON, suffix: str, message_id: str) -> JSON:
    custom = call.get("custom")
    if isinstance(custom, dict):
        return {
            "id": f"ctc_{message_id}_{suffix}",
            "type": "custom_tool_call",
            "call_id": str(call.get("id") or ""),
            "name": str(custom.get("name") or ""),
            "input": str(custom.get("input") or ""),
        }
    function = call.get("function")
    given = function if isinstance(function, dict) else {}
    return {
        "id": f"fc_{message_id}_{suffix}",
        "type": "function_call",
        "call_id": str(call.get("id") or given.get("name") or ""),
        "name": str(given.get("name") or ""),
        "arguments": str(given.get("arguments") or ""),
    }


def _output(message: JSON, message_id: str) -> JSON:
    content = message.get("content")
    return {
        "id": f"fco_{message_id}",
        "type": "function_call_output",
        "call_id": str(message.get("tool_call_id") or message.get("name") or ""),
        "output": [_input_part(part) for part in content] if isinstance(content, list) else content or "",
    }


# --- deleting an item from a message


def without(message: Mapping[str, Any], item: ItemId) -> JSON | None:
    """The message without the item; None if nothing remains."""
    if message["role"] != "assistant":
        return None
    if item.kind == "rs":
        left = {key: value for key, value in message.items() if key not in _REASONING}
    elif item.kind == "msg":
        left = {key: value for key, value in message.items() if key not in _SAID} | {"content": None}
    else:
        left = {key: value for key, value in message.items() if key not in ("tool_calls", "function_call")}
        calls = [call for suffix, call in calls_of(message) if suffix != item.call]
        kept = [call for call in calls if set(call) != {"function"}]
        if kept:
            left["tool_calls"] = kept
        if len(kept) < len(calls):
            left["function_call"] = message["function_call"]
    says_something = any(left.get(key) for key in (*_SAID, *_REASONING, "tool_calls", "function_call"))
    return left if says_something else None
