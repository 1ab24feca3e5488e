"""What the dialects other than chat share: a message with what OpenAI's chat shape cannot say of it. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.wire import json_text
from proxy.wire.residue import difference, restored

JSON = dict[str, Any]

# The two spellings of a lone text: a string, or a list of one text part. The first is the default.
TEXT, PARTS = "text", "parts"


class WireMessage(dict[str, Any]):
    """An OpenAI message, and beside it what only its own dialect says: `wire`, for the column of that name."""

    __slots__ = ("item_ids", "wire")

    def __init__(self, message: Mapping[str, Any], wire: JSON | None = None, *, item_ids: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.wire = wire
        self.item_ids = tuple(item_ids)  # upstream's ids of a reply's items, by which requests may refer to them


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a request says: its messages in the chat shape, its other parameters, and what of it is the exchange's
    alone since it changes with every turn."""

    messages: list[WireMessage]
    parameters: JSON
    wire: JSON | None = None


def wire_of(message: Mapping[str, Any]) -> JSON | None:
    """What a message's own dialect says beside it."""
    return message.wire if isinstance(message, WireMessage) else None


def item_ids_of(message: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids by which requests may refer to a reply's items."""
    return message.item_ids if isinstance(message, WireMessage) else ()


def with_residue(
    message: JSON, sent: Any, *, dialect: str, convert: Callable[[JSON, str], Any], default: str = TEXT
) -> WireMessage:
    """The message with the shortest residue from which `convert` and it give back what was sent."""
    best: JSON | None = None
    for form in (TEXT, PARTS) if default == TEXT else (PARTS, TEXT):
        patch = difference(convert(message, form), sent)
        residue: JSON = {} if form == default else {"form": form}
        if patch is not None:
            residue["patch"] = patch
        if best is None or len(json_text.dumps(residue)) < len(json_text.dumps(best)):
            best = residue
        if patch is None:
            break
    return WireMessage(message, {dialect: best} if best else None)


def as_sent(
    message: JSON, wire: JSON | None, *, dialect: str, convert: Callable[[JSON, str], Any], default: str = TEXT
) -> Any:
    """What was sent in the dialect, exactly where the message came in it; otherwise its conversion."""
    residue = residue_of(wire, dialect)
    form = residue.get("form")
    return restored(convert(message, form if form in (TEXT, PARTS) else default), residue.get("patch"))


def residue_of(wire: JSON | None, dialect: str) -> JSON:
    """What a message says in one dialect alone."""
    residue = wire.get(dialect) if isinstance(wire, dict) else None
    return residue if isinstance(residue, dict) else {}


def lone_text(parts: list[Any]) -> Any:
    """The content of these parts: a text alone as a string, as most chats have it."""
    if len(parts) == 1 and isinstance(parts[0], dict) and set(parts[0]) == {"type", "text"}:
        return parts[0]["text"] if parts[0]["type"] == "text" else parts
    return parts


def objects(value: Any) -> list[JSON]:
    """The objects of what may be no list at all."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def string(value: Any) -> str | None:
    """The value if it is a string."""
    return value if isinstance(value, str) else None


def text_or_json(value: Any) -> str:
    """A string as it is, anything else as JSON text."""
    return value if isinstance(value, str) else json_text.dumps(value)
