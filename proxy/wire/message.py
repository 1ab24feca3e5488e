"""Converts messages between OpenAI's JSON and the columns of the `messages` table, without loss. Pure."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from proxy.wire import json_text
from proxy.wire.dialect import wire_of
from proxy.wire.surrogates import encodable, is_encodable

# Characters of the first question; never cut inside an emoji, which may consist of several joined ones.
TITLE_LENGTH = 80
_TITLE_SOURCE_LENGTH = 4096  # characters; the words of a title may have white space between them
_ZERO_WIDTH_JOINER = "\u200d"
DEFAULT_TITLE = "New Conversation"

# Longer strings in non-text content parts (images, audio, files) are stored as blobs.
_BLOB_LENGTH = 2048
_BLOB_REFERENCE = "blob:sha256:"
# No blobs are extracted below this depth: no client nests images deeper, and Python's recursion limit is near.
_BLOB_DEPTH_MAX = 16


@dataclass(slots=True)
class Columns:
    """A stored message: `content` is the readable text, `extra` the JSON of its other keys, `wire` its residue."""

    role: str
    content: str
    content_form: str
    extra: str | None
    blobs: dict[str, str] = field(default_factory=dict)
    wire: str | None = None


def is_message(value: Any) -> bool:
    """Whether a value can be stored as a message."""
    return isinstance(value, dict) and isinstance(value.get("role"), str) and is_encodable(value["role"])


def to_columns(message: Mapping[str, Any]) -> Columns:
    """Splits an OpenAI message into columns. Null keys carry no information and are dropped."""
    extra = {key: value for key, value in message.items() if value is not None and key not in ("role", "content")}
    blobs: dict[str, str] = {}
    if "content" not in message:
        text, form = "", "none"
    elif isinstance(content := message["content"], str) and is_encodable(content):
        text, form = content, "text"
    else:
        text, form = encodable(readable(content)), "json"
        extra["content"] = _without_blobs(content, blobs)
    said = wire_of(message)
    wire = json_text.dumps(said) if said else None
    return Columns(message["role"], text, form, json_text.dumps(extra) if extra else None, blobs, wire)


def to_openai(
    *, role: str, content: str, content_form: str, extra: str | None, blobs: Mapping[str, str]
) -> dict[str, Any]:
    """Rebuilds the OpenAI message from its columns, as it was sent."""
    others = json_text.stored_object(extra, "extra")
    message: dict[str, Any] = {"role": role}
    if content_form == "text":
        message["content"] = content
    elif content_form == "json":
        message["content"] = _with_blobs(others.pop("content", None), blobs)
    return message | others


def readable(content: Any) -> str:
    """The text of a content: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return "\n".join(text for text in texts if isinstance(text, str))


def title_of(messages: list[dict[str, Any]]) -> str:
    """A session title: the first user message, cut at a word boundary."""
    for message in messages:
        if message.get("role") == "user":
            words = " ".join(encodable(_beginning(readable(message.get("content")))).split())
            if words:
                return _cut(words)
    return DEFAULT_TITLE


def _beginning(text: str) -> str:
    """As much of a text as a title may need, without leading white space."""
    # All words of 40 MB would take a second, in which no other thread runs, and a gigabyte.
    return (text if text[:1].strip() else text.lstrip())[:_TITLE_SOURCE_LENGTH]


def _cut(words: str) -> str:
    if len(words) <= TITLE_LENGTH:
        return words
    head = words[: TITLE_LENGTH + 1]
    # Scripts without spaces have no word boundary to cut at.
    return head.rsplit(" ", 1)[0] if " " in head else words[: _end_of_character(words, TITLE_LENGTH)]


def _end_of_character(text: str, length: int) -> int:
    """The last position up to `length` that does not split a grapheme cluster (an emoji, an accented letter)."""
    end = length
    while end and _are_joined(text, end):
        end -= 1
    return end or length


def _are_joined(text: str, position: int) -> bool:
    """Whether two neighbouring code points belong to one grapheme cluster (https://www.unicode.org/reports/tr29/: the
    rules for marks, joiners, skin tones, tags and flags)."""
    before, after = text[position - 1], text[position]
    if _ZERO_WIDTH_JOINER in (before, after) or unicodedata.category(after) in ("Mn", "Mc", "Me"):
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f":
        return True
    flags = 0
    while flags < position and "\U0001f1e6" <= text[position - 1 - flags] <= "\U0001f1ff":
        flags += 1
    return flags % 2 == 1 and "\U0001f1e6" <= after <= "\U0001f1ff"


def _without_blobs(value: Any, blobs: dict[str, str], *, depth: int = 0, in_text: bool = False) -> Any:
    if isinstance(value, str):
        if in_text or len(value) < _BLOB_LENGTH or not is_encodable(value):
            return value
        digest = sha256(value.encode()).hexdigest()
        blobs[digest] = value
        return _BLOB_REFERENCE + digest
    if depth == _BLOB_DEPTH_MAX:
        return value
    deeper = depth + 1
    if isinstance(value, list):
        return [_without_blobs(item, blobs, depth=deeper, in_text=in_text or isinstance(item, str)) for item in value]
    if isinstance(value, dict):
        return {key: _without_blobs(item, blobs, depth=deeper, in_text=key == "text") for key, item in value.items()}
    return value


def _with_blobs(value: Any, blobs: Mapping[str, str], *, depth: int = 0) -> Any:
    if not blobs:
        return value
    if isinstance(value, str):
        return blobs.get(value.removeprefix(_BLOB_REFERENCE), value) if value.startswith(_BLOB_REFERENCE) else value
    if depth == _BLOB_DEPTH_MAX:
        return value
    if isinstance(value, list):
        return [_with_blobs(item, blobs, depth=depth + 1) for item in value]
    if isinstance(value, dict):
        return {key: _with_blobs(item, blobs, depth=depth + 1) for key, item in value.items()}
    return value
