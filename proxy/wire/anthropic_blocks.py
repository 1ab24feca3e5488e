"""Converts messages of Anthropic's Messages API to chat messages, and back. Pure.

A user message with tool results becomes several chat messages: one per result, then one with the user's own text.
Whatever the chat shape cannot express (signatures, redacted thinking, is_error, order, grouping) goes into the
message's residue. `cache_control` moves from turn to turn, so it is not part of a message: it is stored with the
exchange.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from proxy.wire import json_text
from proxy.wire.dialect import (
    JSON,
    PARTS,
    TEXT,
    WireMessage,
    as_sent,
    lone_text,
    objects,
    residue_of,
    string,
    with_residue,
)
from proxy.wire.message import readable

DIALECT = "anthropic"

_RESULTS = ("tool", "function")
_BLOCK = "block"  # type of the content part that holds a block without a chat equivalent


# --- to the chat shape


def system_messages(system: Any) -> list[WireMessage]:
    """One chat message per system block."""
    blocks = [system] if isinstance(system, str) else system if isinstance(system, list) else []
    return [_system_message(block) for block in blocks]


def _system_message(block: Any) -> WireMessage:
    message = {"role": "system", "content": block if isinstance(block, str) else lone_text([_chat_part(block)])}
    return with_residue(message, block, dialect=DIALECT, convert=_system_block, default=PARTS)


def messages_of(messages: Any) -> list[WireMessage]:
    """Chat messages of a request's `messages`. Never raises on unknown content."""
    found: list[WireMessage] = []
    for message in messages if isinstance(messages, list) else ():
        for position, each in enumerate(_messages(message)):
            joins = bool(found) and _joins(str(each.get("role")), str(found[-1].get("role")))
            found.append(each if joins == (position > 0) else _with(each, {"joined": position > 0}))
    return found


def reply_of(content: Any, *, role: str = "assistant") -> WireMessage:
    """Builds one assistant message from a reply's content."""
    message: JSON = {"role": role, "content": content}
    if isinstance(content, list):
        said = _Said()
        for block in content:
            said.take(block)
        message = {"role": role, **said.keys()}
    return with_residue(message, content, dialect=DIALECT, convert=_reply_content, default=PARTS)


def _messages(message: Any) -> list[WireMessage]:
    role = string(message.get("role")) if isinstance(message, dict) else None
    if not role or role in _RESULTS:  # roles that Anthropic does not have
        return [WireMessage({"role": "user", "content": [message]}, {DIALECT: {"raw": message}})]
    content = message.get("content")
    if role == "assistant":
        found = [reply_of(content)]
    elif role == "user" and isinstance(content, list) and any(map(_is_result, content)):
        found = _results(content)
    else:
        found = [_given(role, content)]
    more = {key: value for key, value in message.items() if key not in ("role", "content")}
    beside: JSON = {"more": more} if more else {}
    if "content" not in message:
        beside["bare"] = True
    return [_with(found[0], beside), *found[1:]] if beside else found


def _results(content: Sequence[Any]) -> list[WireMessage]:
    """Splits a message with tool results: one chat message per result, and one for the remaining blocks."""
    found = [(_result(block), [number]) for number, block in enumerate(content) if _is_result(block)]
    others = [number for number, block in enumerate(content) if not _is_result(block)]
    if others:
        found.append((_given("user", [content[number] for number in others]), others))
    messages, start = [], 0
    for message, numbers in found:
        end = start + len(numbers)
        messages.append(message if numbers == list(range(start, end)) else _with(message, {"at": numbers}))
        start = end
    return messages


def _with(message: WireMessage, more: JSON) -> WireMessage:
    return WireMessage(message, {DIALECT: residue_of(message.wire, DIALECT) | more})


def _is_result(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "tool_result"


def _result(block: JSON) -> WireMessage:
    message: JSON = {"role": "tool", "content": _chat_content(block.get("content"))}
    call_id = string(block.get("tool_use_id"))
    if call_id is not None:
        message["tool_call_id"] = call_id
    return with_residue(message, block, dialect=DIALECT, convert=_result_block)


def _given(role: str, content: Any) -> WireMessage:
    message = {"role": role, "content": _chat_content(content)}
    return with_residue(message, content, dialect=DIALECT, convert=_given_content)


class _Said:
    """Collects the blocks of one assistant message."""

    def __init__(self) -> None:
        self._content: list[Any] = []
        self._thoughts: list[str] = []
        self._calls: list[JSON] = []

    def take(self, block: Any) -> None:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "thinking":
            self._thoughts.append(string(block.get("thinking")) or "")
        elif kind == "tool_use" and isinstance(block.get("name"), str):
            given = block.get("input")
            arguments = given if isinstance(given, str) else json_text.dumps(given)  # text: the stream was cut inside
            call: JSON = {"type": "function", "function": {"name": block["name"], "arguments": arguments}}
            call_id = string(block.get("id"))
            self._calls.append(call if call_id is None else {"id": call_id} | call)
        elif kind != "redacted_thinking":  # encrypted, so it exists only in the residue
            self._content.append(_chat_part(block))

    def keys(self) -> JSON:
        message: JSON = {"content": lone_text(self._content) if self._content else None}
        thought = "\n".join(thought for thought in self._thoughts if thought)
        if thought:
            message["reasoning"] = thought
        if self._calls:
            message["tool_calls"] = self._calls
        return message


def _chat_content(content: Any) -> Any:
    return lone_text([_chat_part(block) for block in content]) if isinstance(content, list) else content


def _chat_part(block: Any) -> Any:
    if not isinstance(block, dict):
        return block
    if block.get("type") == "text" and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]}
    url = _url_of(block) if block.get("type") == "image" else None
    if url is not None:
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": _BLOCK, "block": block}


def _url_of(block: JSON) -> str | None:
    source = block.get("source")
    if not isinstance(source, dict):
        return None
    media, data = string(source.get("media_type")), string(source.get("data"))
    if source.get("type") == "base64" and media and data and not set(media) & set(";,"):
        return f"data:{media};base64,{data}"
    url = string(source.get("url"))
    return url if source.get("type") == "url" and url and not url.startswith("data:") else None


# --- from the chat shape


def system_block(message: JSON, wire: JSON | None) -> Any:
    """The system block as sent, or converted if the message came in another dialect."""
    return as_sent(message, wire, dialect=DIALECT, convert=_system_block, default=PARTS)


def starts_message(role: str, wire: JSON | None, *, after: str | None) -> bool:
    """Whether a stored message starts a new Anthropic message instead of extending the previous one.

    `after` is the role of the previous message. By default, tool results and the user text after them share one
    message.
    """
    joined = residue_of(wire, DIALECT).get("joined")
    if isinstance(joined, bool):
        return not joined
    return not _joins(role, after)


def _joins(role: str, after: str | None) -> bool:
    return after in _RESULTS and (role in _RESULTS or role == "user")


def to_messages(rows: Iterable[tuple[JSON, JSON | None]]) -> list[JSON]:
    """Converts stored messages and their residues to Anthropic messages."""
    groups: list[_Group] = []
    before: str | None = None
    for message, wire in rows:
        role = str(message.get("role"))
        if not groups or starts_message(role, wire, after=before):
            groups.append(_Group())
        groups[-1].add(message, residue_of(wire, DIALECT), wire)
        before = role
    return [group.message() for group in groups]


class _Group:
    """Collects the rows of one Anthropic message."""

    def __init__(self) -> None:
        self._message: JSON = {}
        self._raw: JSON | None = None
        self._is_bare = False
        self._content: Any = None
        self._blocks: list[tuple[int, Any]] = []

    def add(self, message: JSON, residue: JSON, wire: JSON | None) -> None:
        role = str(message.get("role"))
        if "raw" in residue:
            self._raw = residue
        self._is_bare = self._is_bare or residue.get("bare") is True
        self._message.setdefault("role", "user" if role in _RESULTS else role)
        if isinstance(residue.get("more"), dict):
            self._message.update(residue["more"])
        if role in _RESULTS:
            content: Any = [as_sent(message, wire, dialect=DIALECT, convert=_result_block)]
        elif role == "assistant":
            content = as_sent(message, wire, dialect=DIALECT, convert=_reply_content, default=PARTS)
        else:
            content = as_sent(message, wire, dialect=DIALECT, convert=_given_content)
        if self._content is None and not self._blocks and role not in _RESULTS:
            self._content = content
            return
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        places = residue.get("at")
        if not isinstance(places, list) or len(places) != len(blocks):
            places = range(len(self._blocks), len(self._blocks) + len(blocks))
        self._blocks += zip(places, blocks, strict=True)

    def message(self) -> Any:
        if self._raw is not None:
            return self._raw["raw"]
        if self._is_bare:
            return self._message
        if not self._blocks:
            return {**self._message, "content": self._content}
        return {**self._message, "content": [block for _, block in sorted(self._blocks, key=lambda each: each[0])]}


def _system_block(message: JSON, form: str) -> Any:
    return _block_of(message.get("content")) if form == PARTS else message.get("content")


def _given_content(message: JSON, form: str) -> Any:
    content = message.get("content")
    if isinstance(content, str) and form == PARTS:
        return [{"type": "text", "text": content}]
    return [_block(part) for part in content] if isinstance(content, list) else content


def _result_block(message: JSON, form: str) -> JSON:
    call_id = message.get("tool_call_id") or message.get("name") or ""
    return {"type": "tool_result", "tool_use_id": call_id, "content": _given_content(message, form)}


def _reply_content(message: JSON, form: str) -> Any:
    thought = next((message[key] for key in ("reasoning", "reasoning_content") if string(message.get(key))), None)
    calls = [_tool_use(call) for call in objects(message.get("tool_calls"))]
    if form == TEXT and not thought and not calls and not isinstance(message.get("content"), list):
        return message.get("content")
    blocks: list[Any] = [{"type": "thinking", "thinking": thought, "signature": ""}] if thought else []
    content = message.get("content")
    if isinstance(content, list):
        blocks += [_block(part) for part in content]
    elif content:
        blocks.append({"type": "text", "text": content})
    if refusal := string(message.get("refusal")):
        blocks.append({"type": "text", "text": refusal})
    return blocks + calls


def _tool_use(call: JSON) -> JSON:
    function, custom = call.get("function"), call.get("custom")
    if isinstance(custom, dict):
        return {
            "type": "tool_use",
            "id": call.get("id") or "",
            "name": custom.get("name"),
            "input": {"input": custom.get("input")},
        }
    given = function if isinstance(function, dict) else {}
    return {
        "type": "tool_use",
        "id": call.get("id") or "",
        "name": given.get("name") or "",
        "input": _input(given.get("arguments")),
    }


def _input(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        return json_text.loads(arguments) if arguments else {}
    except ValueError:
        return arguments


def _block_of(content: Any) -> Any:
    if isinstance(content, list) and len(content) == 1:
        return _block(content[0])
    return {"type": "text", "text": content if isinstance(content, str) else readable(content)}


def _block(part: Any) -> Any:
    if not isinstance(part, dict):
        return {"type": "text", "text": part} if isinstance(part, str) else part
    kind = part.get("type")
    if kind == _BLOCK and "block" in part:
        return part["block"]
    if kind in ("text", "input_text", "output_text"):
        return {"type": "text", "text": part.get("text")}
    image = part.get("image_url")
    if kind == "image_url":
        url = image.get("url") if isinstance(image, dict) else image
        return {"type": "image", "source": _source(url)} if isinstance(url, str) else part
    return part


def _source(url: str) -> JSON:
    head, comma, data = url.partition(";base64,")
    if comma and head.startswith("data:"):
        return {"type": "base64", "media_type": head[5:], "data": data}
    return {"type": "url", "url": url}
