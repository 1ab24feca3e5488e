"""Stored messages in the request and reply format of their original endpoint, for display and for copying. Pure."""

from collections.abc import Sequence
from typing import Any

from proxy.wire import anthropic, completions, responses, responses_items
from proxy.wire.anthropic_blocks import DIALECT as ANTHROPIC
from proxy.wire.anthropic_blocks import to_messages
from proxy.wire.message import readable

JSON = dict[str, Any]
Row = tuple[JSON, JSON | None]  # an OpenAI message and its residue

_NAMES = {responses_items.DIALECT: "Responses", ANTHROPIC: "Messages"}
# Request keys about delivery rather than content: a request repeated by hand should get one complete reply.
_OF_THE_FORM = frozenset({"stream", "stream_options", "background", "store"})


def request_of(path: str, rows: Sequence[Row], wire: JSON) -> JSON:
    """The keys of a request body that contain its messages."""
    if path == responses.PATH:
        return _responses_request(rows, wire)
    if path == anthropic.PATH:
        return anthropic.request_of(rows, wire)
    messages = [message for message, _ in rows]
    if path == completions.PATH:
        prompts = [message.get("content") for message in messages]
        return {"prompt": prompts[0] if len(prompts) == 1 else prompts}
    return {"messages": messages}


def _responses_request(rows: Sequence[Row], wire: JSON) -> JSON:
    shown: JSON = {}
    if rows and wire.get("instructions") is True:
        shown["instructions"] = rows[0][0].get("content")
        rows = rows[1:]
    return shown | {"input": [item for row in rows for item in responses_items.items_of(*row)]}


def request_again(path: str, rows: Sequence[Row], wire: JSON, parameters: JSON) -> JSON:
    """A body that sends these messages again, with the parameters of their last request."""
    kept = {name: value for name, value in parameters.items() if name not in _OF_THE_FORM}
    if path == completions.PATH:
        return kept | {"prompt": "".join(readable(message.get("content")) for message, _ in rows)}
    return kept | request_of(path, rows, wire)


def reply_of(path: str, rows: Sequence[Row], choices: Sequence[JSON]) -> JSON:
    """The keys of a reply body that contain the generated content. `choices` has each choice's other keys."""
    if path == responses.PATH:
        return {"object": "response", "output": [item for row in rows for item in responses_items.items_of(*row)]}
    if path == anthropic.PATH:
        said = to_messages(list(rows[:1]))
        return {"type": "message", **(said[0] if said and isinstance(said[0], dict) else {})}
    key = "text" if path == completions.PATH else "message"
    told = [message.get("content") if key == "text" else message for message, _ in rows]
    return {"choices": [{key: each} | choice for each, choice in zip(told, choices, strict=True)]}


def in_own_form(message: JSON, wire: JSON) -> tuple[str, list[Any]] | None:
    """The dialect that a message came in, and the message in that dialect; None for chat completions."""
    dialect = next((each for each in _NAMES if each in wire), None)
    if dialect is None:
        return None
    row = (message, wire)
    return _NAMES[dialect], to_messages([row]) if dialect == ANTHROPIC else responses_items.items_of(*row)


def is_error(form: Sequence[Any]) -> bool:
    """Whether a message in Anthropic's format contains the result of a failed tool."""
    contents = [each.get("content") for each in form if isinstance(each, dict)]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    return any(isinstance(block, dict) and block.get("is_error") is True for block in blocks)
