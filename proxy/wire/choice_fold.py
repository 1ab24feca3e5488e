"""Folds the deltas of one choice of a streamed chat completion. Pure."""

from typing import Any

from proxy.wire.endpoint import JSON, Choice
from proxy.wire.merge import SAID_ONCE, joined, merge
from proxy.wire.tool_calls import ToolCalls

NEVER_APPENDED = SAID_ONCE | {"name", "tool_calls"}


class ChoiceFold:
    """The message so far, and the choice's other keys."""

    __slots__ = ("_calls", "_extra", "finish_reason", "message")

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.message: JSON = {}
        self._extra: JSON = {}
        self._calls = ToolCalls()

    def choice(self, index: int) -> Choice:
        message = {key: joined(value) for key, value in self.message.items()}
        if self._calls:
            said = message.get("tool_calls") or []
            message["tool_calls"] = self._calls.whole() + (said if isinstance(said, list) else [said])
        return Choice(index, with_role(message), self.finish_reason, {k: joined(v) for k, v in self._extra.items()})

    def take_extra(self, key: str, value: object) -> None:
        """Merges a key beside the delta: lists and objects (logprobs, token_ids) grow, a string replaces the previous
        one."""
        # Such as `stop_reason`, which vLLM sends in the last chunk.
        if isinstance(value, str):
            self._extra[key] = value
        else:
            merge(self._extra, key, value)

    def take_calls(self, value: Any) -> bool:
        """Merges a delta's `tool_calls`: a list, one object, or objects by index. False if it is none of these."""
        pieces = _objects(value)
        if pieces is None:
            merge(self.message, "tool_calls", value)
            return False
        odd = [each for each in value if not isinstance(each, dict)] if isinstance(value, list) else []
        merge(self.message, "tool_calls", odd)
        self._calls.take(pieces)
        return not odd


def with_role(message: JSON) -> JSON:
    """The message with a valid role; a choice without one is the assistant's."""
    role = message.get("role")
    is_spelled_oddly = isinstance(role, str) and role != "assistant" and role.strip().lower() in ("", "assistant")
    return message | {"role": "assistant"} if is_spelled_oddly else message


def _objects(value: Any) -> list[JSON] | None:
    if isinstance(value, dict):
        are_numbered = bool(value) and all(isinstance(each, dict) and key.isdigit() for key, each in value.items())
        value = [{"index": key, **each} for key, each in value.items()] if are_numbered else [value]
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else None
