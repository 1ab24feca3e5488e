"""Converts items of OpenAI's Responses API to chat messages, and back. Pure.

Consecutive items of the model (reasoning, message, function call) become one assistant message. Nothing is rejected:
an item without a chat equivalent is kept as a content part. Whatever the chat shape cannot express (ids, status, phase,
order, encrypted content) goes into the message's residue, so that items are returned as they were sent.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from proxy.wire.dialect import (
    JSON,
    PARTS,
    TEXT,
    WireMessage,
    as_sent,
    lone_text,
    objects,
    string,
    text_or_json,
    with_residue,
)

DIALECT = "responses"

_TEXTS = frozenset({"input_text", "output_text", "text"})
_CALLS = frozenset({"function_call", "custom_tool_call"})
_OUTPUTS = frozenset({"function_call_output", "custom_tool_call_output"})
# Items of other names that the client adds, and outputs of tools that run at the server: these have an id.
_CLIENTS = frozenset({"mcp_approval_response", "additional_tools"})
_SERVERS_OUTPUTS = frozenset({"shell_call_output", "tool_search_output", "program_output"})
# Keys that do not identify an item: left out of the content part of an unmapped item.
_UNSTEADY = ("id", "status")
_ITEM = "item"  # type of the content part that holds an unmapped item


# --- items to messages


def messages_of(items: Any) -> list[WireMessage]:
    """Chat messages of a request's input or a reply's output."""
    if isinstance(items, str):
        return [WireMessage({"role": "user", "content": items})]
    if not isinstance(items, list):
        return []
    messages: list[WireMessage] = []
    run: list[JSON] = []
    for item in items:
        if isinstance(item, dict) and _is_models(item):
            run.append(item)
            continue
        if run:
            messages.append(reply_of(run))
            run = []
        messages.append(_given(item))
    if run:
        messages.append(reply_of(run))
    return messages


def reply_of(items: Sequence[JSON]) -> WireMessage:
    """Builds one assistant message from consecutive items of the model."""
    said = _Said()
    for item in items:
        said.take(item)
    return with_residue(said.message(), list(items), dialect=DIALECT, convert=_reply_items, default=PARTS)


def _is_models(item: JSON) -> bool:
    """Whether the model created the item, so that it belongs to the surrounding reply."""
    kind = _kind(item)
    if kind == "message":
        return item.get("role") == "assistant"
    if kind in _SERVERS_OUTPUTS:
        return isinstance(item.get("id"), str)
    return isinstance(kind, str) and not kind.endswith("_output") and kind not in _CLIENTS


def _kind(item: JSON) -> Any:
    return item.get("type") or "message"


class _Said:
    """Collects the items of one assistant message."""

    def __init__(self) -> None:
        self._content: list[Any] = []
        self._has_message = False
        self._thoughts: list[str] = []
        self._refusals: list[str] = []
        self._calls: list[JSON] = []

    def take(self, item: JSON) -> None:
        kind = _kind(item)
        if kind == "message":
            self._has_message = True
            self._take_content(item.get("content"))
        elif kind == "reasoning":
            text = _thinking_text(item)
            if text:
                self._thoughts.append(text)
        elif kind in _CALLS:
            self._calls.append(_chat_call(item))
        else:
            self._content.append(_kept(item))

    def message(self) -> JSON:
        message: JSON = {"role": "assistant", "content": self._chat_content()}
        if self._thoughts:
            message["reasoning"] = "\n".join(self._thoughts)
        if self._refusals:
            message["refusal"] = "\n".join(self._refusals)
        if self._calls:
            message["tool_calls"] = self._calls
        return message

    def _chat_content(self) -> Any:
        if not self._content:
            return "" if self._has_message and not self._refusals else None
        return lone_text(self._content)

    def _take_content(self, content: Any) -> None:
        if isinstance(content, str):
            self._content.append({"type": "text", "text": content})
            return
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") == "refusal":
                self._refusals.append(str(part.get("refusal") or ""))
            else:
                self._content.append(chat_part(part))


def _thinking_text(item: JSON) -> str:
    parts = objects(item.get("content")) or objects(item.get("summary"))
    return "\n".join(text for part in parts if (text := string(part.get("text"))))


def _chat_call(item: JSON) -> JSON:
    call_id = string(item.get("call_id"))
    call: JSON = {} if call_id is None else {"id": call_id}
    name = string(item.get("name")) or ""
    if item.get("type") == "custom_tool_call":
        return call | {"type": "custom", "custom": {"name": name, "input": text_or_json(item.get("input"))}}
    return call | {"type": "function", "function": {"name": name, "arguments": text_or_json(item.get("arguments"))}}


def _given(item: Any) -> WireMessage:
    """Converts an item that the model did not create."""
    if not isinstance(item, dict):
        return WireMessage({"role": "user", "content": [item]}, {DIALECT: {"patch": {"=": [item]}}})
    role = string(item.get("role"))
    message: JSON
    if _kind(item) == "message" and role:
        message = {"role": role, "content": _chat_content(item.get("content"))}
    else:
        call_id = string(item.get("call_id"))
        message = {"role": "tool" if str(_kind(item)).endswith("_output") else "user"}
        if call_id is not None and message["role"] == "tool":
            message["tool_call_id"] = call_id
        if _kind(item) in _OUTPUTS:
            message["content"] = _chat_content(item.get("output"))
        else:
            message["content"] = [_kept(item)]
    return with_residue(message, [item], dialect=DIALECT, convert=_given_items)


def _chat_content(content: Any) -> Any:
    if isinstance(content, list):
        return lone_text([chat_part(part) for part in content])
    return content


def chat_part(part: Any) -> Any:
    """Converts a content part to its form in chat requests; returns it unchanged if there is none."""
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if kind in _TEXTS and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
    if kind == "input_file":
        return {"type": "file", "file": {key: value for key, value in part.items() if key != "type"}}
    return part


# --- messages to items


def items_of(message: JSON, wire: JSON | None = None, *, form: str = TEXT) -> list[Any]:
    """A message's items: as sent if it came as items, else converted. `form` applies to text without a residue."""
    if message.get("role") == "assistant":
        items = as_sent(message, wire, dialect=DIALECT, convert=_reply_items, default=PARTS)
    else:
        items = as_sent(message, wire, dialect=DIALECT, convert=_given_items, default=form)
    return items if isinstance(items, list) else []


def _given_items(message: JSON, form: str) -> list[JSON]:
    role, content = message.get("role"), message.get("content")
    if isinstance(content, list) and len(content) == 1 and _is_kept(content[0]):
        return [content[0]["item"]]
    if role in ("tool", "function"):
        call_id = message.get("tool_call_id") or message.get("name") or ""
        output = "" if content is None else _item_content(content, form, "input_text")
        return [{"type": "function_call_output", "call_id": call_id, "output": output}]
    return [{"role": role, "content": _item_content(content, form, "input_text")}]


def _kept(item: JSON) -> JSON:
    """The content part that holds an unmapped item."""
    return {"type": _ITEM, "item": {key: value for key, value in item.items() if key not in _UNSTEADY}}


def _is_kept(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == _ITEM and isinstance(part.get("item"), dict)


def _item_content(content: Any, form: str, kind: str) -> Any:
    if isinstance(content, str) and form == PARTS:
        return [{"type": kind, "text": content}]
    if isinstance(content, list):
        return [_item_part(part, kind) for part in content]
    return content


def _item_part(part: Any, kind: str) -> Any:
    if not isinstance(part, dict):
        return part
    image, file = part.get("image_url"), part.get("file")
    if part.get("type") in _TEXTS:
        return {"type": kind, "text": part.get("text")}
    if part.get("type") == "image_url":
        given = image if isinstance(image, dict) else {"url": image}
        return {"type": "input_image", "image_url": given.get("url"), "detail": given.get("detail") or "auto"}
    if part.get("type") == "file" and isinstance(file, dict):
        return {"type": "input_file", **file}
    return part


def _reply_items(message: JSON, form: str) -> list[JSON]:
    items: list[JSON] = []
    thought = next((message[key] for key in ("reasoning", "reasoning_content") if string(message.get(key))), None)
    if thought:
        items.append({"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": thought}]})
    items += _message_items(message, form)
    items += [_item_call(call) for call in _calls_of(message)]
    return items


def _message_items(message: JSON, form: str) -> list[JSON]:
    content, refusal = message.get("content"), string(message.get("refusal"))
    if isinstance(content, str) and form == TEXT and not refusal:
        return [{"type": "message", "role": "assistant", "content": content}]
    items: list[JSON] = []
    parts: list[Any] = [content] if isinstance(content, str) else content if isinstance(content, list) else []
    for part in parts:
        if _is_kept(part):
            items.append(part["item"])
        else:
            items.append({"type": "message", "role": "assistant", "content": [_output_part(part)]})
    if refusal:
        said = {"type": "refusal", "refusal": refusal}
        items.append({"type": "message", "role": "assistant", "content": [said]})
    return items


def _output_part(part: Any) -> Any:
    if isinstance(part, str):
        return {"type": "output_text", "text": part, "annotations": []}
    if isinstance(part, dict) and part.get("type") in _TEXTS:
        return {"type": "output_text", "text": part.get("text"), "annotations": []}
    return part


def _calls_of(message: JSON) -> Iterable[JSON]:
    yield from objects(message.get("tool_calls"))
    old = message.get("function_call")
    if isinstance(old, dict):
        yield {"id": old.get("name"), "function": old}


def _item_call(call: JSON) -> JSON:
    call_id = call.get("id") or ""
    custom, function = call.get("custom"), call.get("function")
    if isinstance(custom, dict):
        said = {"name": custom.get("name"), "input": custom.get("input")}
        return {"type": "custom_tool_call", "call_id": call_id, **said}
    given = function if isinstance(function, dict) else {}
    return {
        "type": "function_call",
        "call_id": call_id,
        "name": given.get("name") or "",
        "arguments": given.get("arguments") or "",
    }
