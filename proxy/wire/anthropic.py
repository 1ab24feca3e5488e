"""`/v1/messages` (Anthropic): parses a request into chat messages and parameters, and back. Pure."""

from collections.abc import Sequence
from typing import Any

from proxy.wire.anthropic_blocks import messages_of, system_block, system_messages, to_messages
from proxy.wire.dialect import JSON, Conversation, string

PATH = "/v1/messages"

_HINT = "cache_control"
# Claude Code writes this at the beginning of its system text, with a value that changes with each request.
_BILLING = "x-anthropic-billing-header"


def conversation_of(request: JSON) -> Conversation:
    """Splits a request into messages, parameters and per-exchange data.

    `cache_control` hints and the billing header change with every turn, so they belong to the exchange and not to the
    conversation.
    """
    hints: list[Any] = []
    system, billing = _system(request.get("system"), hints)
    messages = _messages(request.get("messages"), hints)
    said = system_messages(system)
    found = messages_of(messages)
    # By default, leading system messages came from the request's `system` field.
    wire: JSON = {"system": len(said)} if found and _is_system(found[0]) else {}
    if billing:
        wire["billing"] = billing
    if hints:
        wire[_HINT] = hints
    parameters = {key: value for key, value in request.items() if key not in ("system", "messages", "metadata")}
    return Conversation([*said, *found], parameters, wire or None)


def request_of(rows: Sequence[tuple[JSON, JSON | None]], wire: JSON | None) -> JSON:
    """Rebuilds `system` and `messages` from stored messages, their residues and the exchange's `wire` column."""
    known = wire or {}
    count = known.get("system")
    if not isinstance(count, int):  # the request was sent in another dialect
        count = next((place for place, (message, _) in enumerate(rows) if not _is_system(message)), len(rows))
    system: Any = [system_block(message, residue) for message, residue in rows[:count]]
    messages = to_messages(rows[count:])
    _put_hints(system, messages, known.get(_HINT))
    for place, block in known.get("billing", ()):
        system.insert(place, block)
    if len(system) == 1 and isinstance(system[0], str):
        system = system[0]
    return {"system": system, "messages": messages} if system else {"messages": messages}


def _is_system(message: JSON) -> bool:
    return message.get("role") in ("system", "developer")


def _put_hints(system: Any, messages: Any, hints: Any) -> None:
    """Puts the `cache_control` hints back at their positions; skips positions that no longer exist."""
    for hint in hints or ():
        target: Any = {"system": system, "messages": messages}
        try:
            for step in hint[0]:
                target = target[step]
            target[_HINT] = hint[1]
        except (KeyError, IndexError, TypeError):
            continue


def _system(system: Any, hints: list[Any]) -> tuple[Any, list[Any]]:
    """Removes hints and billing headers from the system blocks; returns each with its position."""
    if not isinstance(system, list):
        return system, []
    billing = [[place, block] for place, block in enumerate(system) if _is_billing(block)]
    kept = [block for block in system if not _is_billing(block)]
    return [_without(block, ["system", place], hints) for place, block in enumerate(kept)], billing


def _is_billing(block: Any) -> bool:
    text = string(block.get("text")) if isinstance(block, dict) else None
    return text is not None and text.startswith(_BILLING)


def _messages(messages: Any, hints: list[Any]) -> Any:
    if not isinstance(messages, list):
        return messages
    kept = []
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            place = ["messages", number, "content"]
            kept.append({**message, "content": _blocks(content, place, hints)})
        else:
            kept.append(message)
    return kept


def _blocks(content: list[Any], place: list[Any], hints: list[Any]) -> list[Any]:
    found = []
    for number, given in enumerate(content):
        here = [*place, number]
        block = _without(given, here, hints)
        inner = block.get("content") if isinstance(block, dict) and block.get("type") == "tool_result" else None
        if isinstance(inner, list):
            within = [_without(each, [*here, "content", index], hints) for index, each in enumerate(inner)]
            block = {**block, "content": within}
        found.append(block)
    return found


def _without(block: Any, place: list[Any], hints: list[Any]) -> Any:
    if not isinstance(block, dict) or _HINT not in block:
        return block
    hints.append([place, block[_HINT]])
    return {key: value for key, value in block.items() if key != _HINT}
