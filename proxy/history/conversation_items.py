"""Converts messages to items of OpenAI's Conversations API, and back. Pure.

A reply may become several items: reasoning, message, and one per tool call. An item's id consists of its kind, the
message id and, for a call, a digest of the call, so that it stays the same when another call is deleted.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from proxy.errors import InvalidRequestError
from proxy.history.serializers import JSON, openai_message
from proxy.storage.queries.messages import Message
from proxy.wire import json_text

LOGPROBS = "message.output_text.logprobs"

_ID = re.compile(r"(rs|msg|fc|ctc|fco)_([^_]{1,128})(?:_([0-9a-z]+))?")
# The order of items within a message.
_RANK = {"rs": 0, "msg": 1, "fc": 2, "ctc": 2, "fco": 3}
_ROLES = frozenset({"user", "assistant", "system", "developer"})
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
        items = [_said(message, row, [_input_part(part) for part in _parts(message.get("content"))])]
    for item in items:
        item["status"] = "completed"
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
        items.append(_said(message, row, parts))
    return items + calls


def _said(message: JSON, row: Message, parts: list[JSON]) -> JSON:
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
    annotations = [_annotation(each) for each in _objects(message.get("annotations"))]
    return {"type": "output_text", "text": str(text or ""), "annotations": annotations, "logprobs": []}


def _annotation(annotation: JSON) -> JSON:
    """Moves a citation's fields up: chat completions nest them one level deeper."""
    kind = str(annotation.get("type"))
    inner = annotation.get(kind)
    return {"type": kind, **inner} if isinstance(inner, dict) else annotation


def _logprobs(row: Message) -> list[JSON]:
    choice = json_text.stored_object(row.choice, "choice")
    logprobs = choice.get("logprobs")
    tokens = _objects(logprobs.get("content")) if isinstance(logprobs, dict) else []
    return [
        {**_logprob(token), "top_logprobs": [_logprob(other) for other in _objects(token.get("top_logprobs"))]}
        for token in tokens
    ]


def _logprob(token: JSON) -> JSON:
    return {"token": token.get("token"), "logprob": token.get("logprob"), "bytes": token.get("bytes") or []}


def calls_of(message: Mapping[str, Any]) -> list[tuple[str, JSON]]:
    """A reply's calls with the id suffix of each item. The legacy `function_call` counts as one."""
    calls: list[tuple[str, JSON]] = []
    old = message.get("function_call")
    for call in [*_objects(message.get("tool_calls")), *([{"function": old}] if isinstance(old, dict) else [])]:
        digest = blake2b(json_text.dumps(call.get("id") or call).encode(), digest_size=4).hexdigest()
        calls.append((f"{digest}{sum(suffix.startswith(digest) for suffix, _ in calls) or ''}", call))
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


def _objects(value: Any) -> list[JSON]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


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


# --- items to messages


def messages_of(items: Sequence[Any]) -> list[JSON]:
    """Converts a caller's items to messages; the items of one reply become one message. Raises InvalidRequestError."""
    messages: list[JSON] = []
    reply: JSON | None = None
    for number, item in enumerate(items):
        given = _Given(item, f"items[{number}]")
        if given.is_reply:
            if reply is None or not _goes_on(reply, given.kind):
                reply = {"role": "assistant", "content": None}
                messages.append(reply)
            given.add_to(reply)
        else:
            reply = None
            messages.append(given.message())
    return messages


def _goes_on(reply: JSON, kind: str) -> bool:
    """Whether an item continues the current reply, in the order reasoning, message, calls."""
    if kind == "reasoning":
        return False
    is_open = reply["content"] is None and "refusal" not in reply and "tool_calls" not in reply
    return is_open or kind in ("function_call", "custom_tool_call")


class _Given:
    """An item as sent by a caller."""

    def __init__(self, item: Any, param: str) -> None:
        if not isinstance(item, dict):
            raise InvalidRequestError(f"{param} is no object.", param=param)
        self._item: JSON = item
        self._param = param
        self.kind: str = item.get("type") or "message"

    @property
    def is_reply(self) -> bool:
        return self.kind in ("reasoning", "function_call", "custom_tool_call") or self._role() == "assistant"

    def add_to(self, reply: JSON) -> None:
        """Adds the item to a reply."""
        if self.kind == "reasoning":
            parts = [*_objects(self._item.get("summary")), *_objects(self._item.get("content"))]
            reply["reasoning"] = "\n".join(str(part.get("text") or "") for part in parts)
        elif self.kind == "function_call":
            function = {"name": self._text("name"), "arguments": self._text("arguments")}
            self._add_call(reply, {"type": "function", "function": function})
        elif self.kind == "custom_tool_call":
            self._add_call(
                reply, {"type": "custom", "custom": {"name": self._text("name"), "input": self._text("input")}}
            )
        else:
            parts = self._content_parts()
            refusals = [str(part.get("refusal") or "") for part in parts if part.get("type") == "refusal"]
            texts = [self._said(part) for part in parts if part.get("type") != "refusal"]
            if refusals:
                reply["refusal"] = "\n".join(refusals)
            reply["content"] = "".join(texts) if texts or not refusals else None

    def message(self) -> JSON:
        """The message of an item that is not part of a reply."""
        if self.kind in ("function_call_output", "custom_tool_call_output"):
            output = self._item.get("output")
            content = output if isinstance(output, str) else self._sent(self._checked_parts(output, "output"))
            return {"role": "tool", "tool_call_id": self._text("call_id"), "content": content}
        role = self._role()
        if role is None:
            raise self._wrong("type", f"An item of type {self.kind} cannot be kept.")
        return {"role": role, "content": self._sent(self._content_parts())}

    def _role(self) -> str | None:
        if self.kind != "message":
            return None
        role = self._item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise self._wrong("role", f"role is one of {', '.join(sorted(_ROLES))}.")
        return role

    def _add_call(self, reply: JSON, call: JSON) -> None:
        reply.setdefault("tool_calls", []).append({"id": self._text("call_id"), **call})

    def _content_parts(self) -> list[JSON]:
        content = self._item.get("content")
        if isinstance(content, str):
            return [{"type": "input_text", "text": content}]
        return self._checked_parts(content, "content")

    def _checked_parts(self, value: Any, name: str) -> list[JSON]:
        if not isinstance(value, list) or len(_objects(value)) < len(value):
            raise self._wrong(name, f"{name} is a string or a list of parts.")
        return value

    def _said(self, part: JSON) -> str:
        if part.get("type") not in ("output_text", "input_text", "text") or not isinstance(part.get("text"), str):
            raise self._wrong("content", "A reply is made of output_text and refusal.")
        return str(part["text"])

    def _sent(self, parts: Iterable[JSON]) -> Any:
        """Chat content; a single text becomes a string."""
        content = [self._sent_part(part) for part in parts]
        is_text = len(content) == 1 and content[0]["type"] == "text"
        return content[0]["text"] if is_text else content

    def _sent_part(self, part: JSON) -> JSON:
        kind = part.get("type")
        if kind in ("input_text", "output_text", "text") and isinstance(part.get("text"), str):
            return {"type": "text", "text": part["text"]}
        if kind == "input_image" and isinstance(part.get("image_url"), str):
            detail = {"detail": part["detail"]} if part.get("detail") else {}
            return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
        if kind == "input_file":
            return {"type": "file", "file": {key: value for key, value in part.items() if key != "type"}}
        if kind == "input_audio":
            return part
        raise self._wrong("content", f"A part of type {kind} cannot be kept.")

    def _text(self, name: str) -> str:
        value = self._item.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, f"{name} is a string.")
        return value

    def _wrong(self, name: str, message: str) -> InvalidRequestError:
        return InvalidRequestError(message, param=f"{self._param}.{name}")
