"""Chat messages with a residue (data that the chat shape cannot express), for the dialects other than chat. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.wire import json_text
from proxy.wire.residue import difference, restored

JSON = dict[str, Any]

# The two forms of a single text: a string (default), or a list with one text part.
TEXT, PARTS = "text", "parts"


class WireMessage(dict[str, Any]):
    """A chat message plus `wire`: the data that only its own dialect can express (stored in the column of that
    name)."""

    __slots__ = ("item_ids", "wire")

    def __init__(self, message: Mapping[str, Any], wire: JSON | None = None, *, item_ids: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.wire = wire
        self.item_ids = tuple(item_ids)  # upstream's ids of a reply's items, which later requests may refer to


@dataclass(frozen=True, slots=True)
class Conversation:
    """A parsed request: messages in the chat shape, other parameters, and per-exchange data that changes every turn."""

    messages: list[WireMessage]
    parameters: JSON
    wire: JSON | None = None


def wire_of(message: Mapping[str, Any]) -> JSON | None:
    """The message's `wire` data, if any."""
    return message.wire if isinstance(message, WireMessage) else None


def item_ids_of(message: Mapping[str, Any]) -> tuple[str, ...]:
    """The item ids by which later requests may refer to this reply."""
    return message.item_ids if isinstance(message, WireMessage) else ()


def with_residue(
    message: JSON, sent: Any, *, dialect: str, convert: Callable[[JSON, str], Any], default: str = TEXT
) -> WireMessage:
    """Attaches the smallest residue from which `convert` can rebuild what was sent."""
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
    """The exact original if the message came in this dialect, otherwise its conversion."""
    residue = residue_of(wire, dialect)
    form = residue.get("form")
    return restored(convert(message, form if form in (TEXT, PARTS) else default), residue.get("patch"))


def residue_of(wire: JSON | None, dialect: str) -> JSON:
    """The message's residue for one dialect."""
    residue = wire.get(dialect) if isinstance(wire, dict) else None
    return residue if isinstance(residue, dict) else {}


def lone_text(parts: list[Any]) -> Any:
    """A single text part as a string, as most chats send it; other parts unchanged."""
    if len(parts) == 1 and isinstance(parts[0], dict) and set(parts[0]) == {"type", "text"}:
        return parts[0]["text"] if parts[0]["type"] == "text" else parts
    return parts


def objects(value: Any) -> list[JSON]:
    """The objects of a list; [] if the value is not a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def string(value: Any) -> str | None:
    """The value if it is a string."""
    return value if isinstance(value, str) else None


def text_or_json(value: Any) -> str:
    """Strings unchanged, anything else as JSON text."""
    return value if isinstance(value, str) else json_text.dumps(value)
