"""Converts a caller's Conversations API items to messages; `conversation_items` does the reverse. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any

from proxy.errors import InvalidRequestError
from proxy.history.serializers import JSON
from proxy.wire.dialect import objects
from proxy.wire.responses_items import chat_part

# OpenAI's roles of a message item; tool results are items of their own type.
_ROLES = frozenset({"user", "assistant", "system", "developer"})


def messages_of(items: Sequence[Any]) -> list[JSON]:
    """Converts a caller's items to messages; the items of one reply become one message. Raises InvalidRequestError."""
    messages: list[JSON] = []
    reply: JSON | None = None
    for number, item in enumerate(items):
        given = _Given(item, f"items[{number}]")
        if given.is_reply:
            # A reply is one message here, but several items in OpenAI's API.
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
            raise InvalidRequestError(f"{param} is not an object.", param=param)
        self._item: JSON = item
        self._param = param
        self.kind: str = item.get("type") or "message"

    @property
    def is_reply(self) -> bool:
        return self.kind in ("reasoning", "function_call", "custom_tool_call") or self._role() == "assistant"

    def add_to(self, reply: JSON) -> None:
        """Adds the item to a reply."""
        if self.kind == "reasoning":
            parts = [*objects(self._item.get("summary")), *objects(self._item.get("content"))]
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
            texts = [self._text_of_part(part) for part in parts if part.get("type") != "refusal"]
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
            raise self._wrong("type", f"An item of type {self.kind} cannot be stored.")
        return {"role": role, "content": self._sent(self._content_parts())}

    def _role(self) -> str | None:
        if self.kind != "message":
            return None
        role = self._item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise self._wrong("role", f"role must be one of {', '.join(sorted(_ROLES))}.")
        return role

    def _add_call(self, reply: JSON, call: JSON) -> None:
        reply.setdefault("tool_calls", []).append({"id": self._text("call_id"), **call})

    def _content_parts(self) -> list[JSON]:
        content = self._item.get("content")
        if isinstance(content, str):
            return [{"type": "input_text", "text": content}]
        return self._checked_parts(content, "content")

    def _checked_parts(self, value: Any, name: str) -> list[JSON]:
        if not isinstance(value, list) or len(objects(value)) < len(value):
            raise self._wrong(name, f"{name} must be a string or a list of parts.")
        return value

    def _text_of_part(self, part: JSON) -> str:
        if part.get("type") not in ("output_text", "input_text", "text") or not isinstance(part.get("text"), str):
            raise self._wrong("content", "A reply may contain only parts of type output_text and refusal.")
        return str(part["text"])

    def _sent(self, parts: Iterable[JSON]) -> Any:
        """Chat content; a single text becomes a string."""
        content = [self._sent_part(part) for part in parts]
        is_text = len(content) == 1 and content[0]["type"] == "text"
        return content[0]["text"] if is_text else content

    def _sent_part(self, part: JSON) -> JSON:
        kind = part.get("type")
        sent: JSON = chat_part(part)
        if sent is part and kind != "input_audio":  # the same in both forms
            raise self._wrong("content", f"A part of type {kind} cannot be stored.")
        return sent

    def _text(self, name: str) -> str:
        value = self._item.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, f"{name} must be a string.")
        return value

    def _wrong(self, name: str, message: str) -> InvalidRequestError:
        return InvalidRequestError(message, param=f"{self._param}.{name}")
