"""One output item of a response, grown from the events about it. Pure."""

from typing import Any

from proxy.wire.dialect import JSON, string
from proxy.wire.json_text import copied
from proxy.wire.merge import extend, index_of, text_of

# Where each kind of text is appended: to a part (by content or summary index), or to the item itself.
_PART_TEXTS = {
    "response.output_text": ("content", "output_text"),
    "response.refusal": ("content", "refusal"),
    "response.reasoning_text": ("content", "reasoning_text"),
    "response.reasoning_summary_text": ("summary", "summary_text"),
}
_ITEM_TEXTS = {
    "response.function_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
    "response.mcp_call_arguments": "arguments",
    "response.code_interpreter_call_code": "code",
}
_STEMS = frozenset(
    (
        *_PART_TEXTS,
        *_ITEM_TEXTS,
        "response.output_item",
        "response.content_part",
        "response.reasoning_part",
        "response.reasoning_summary_part",
    )
)
_ANNOTATED = "response.output_text.annotation.added"
DELTAS = frozenset(f"{kind}.delta" for kind in (*_PART_TEXTS, *_ITEM_TEXTS))

# A text that is still growing: a part by its place and number, or a key of the item and None.
_Place = tuple[str, int | None]


def is_about_item(kind: str) -> bool:
    """Whether events of this kind carry part of an item."""
    stem, _, end = kind.rpartition(".")
    return kind == _ANNOTATED or (end in ("added", "delta", "done") and stem in _STEMS)


def identity_of(item: JSON) -> str | None:
    """The id that distinguishes an item from others."""
    return string(item.get("id")) or string(item.get("call_id"))


class GrowingItem:
    """An item that may still grow. Events of unknown kinds are ignored: the item's `done` event repeats what they
    said."""

    def __init__(self, item: JSON) -> None:
        self.item = item
        self.is_done = False
        self._parts: dict[str, dict[int, Any]] = {}  # `content` and `summary`, once an event has named a part of them
        self._texts: dict[_Place, list[str]] = {}

    @property
    def identity(self) -> str | None:
        return identity_of(self.item)

    def replace(self, item: JSON, *, is_done: bool) -> None:
        """Takes the whole item, as the events `added` and `done` hold it."""
        self.item, self.is_done = item, is_done
        self._parts.clear()
        self._texts.clear()

    def take(self, kind: str, event: JSON) -> list[str] | None:
        """Takes an event about the item. Returns the list that its delta was appended to."""
        stem, _, end = kind.rpartition(".")
        if isinstance(part := event.get("part"), dict):
            place = "summary" if "summary_index" in event else "content"
            number = _number(event, place)
            self._parts_of(place)[number] = part
            self._texts.pop((place, number), None)
        elif kind == _ANNOTATED:
            self._annotate(event)
        elif end == "delta" and isinstance(delta := event.get("delta"), str):
            return self._append(stem, event, delta)
        elif end == "done":
            self._set(stem, event)
        return None

    def whole(self) -> JSON:
        """A copy of the item with everything received for it."""
        item: JSON = copied(self.item)
        for place, parts in self._parts.items():
            item[place] = [self._grown(place, number, parts[number]) for number in sorted(parts)]
        for (key, number), pieces in self._texts.items():
            if number is None:
                item[key] = (string(item.get(key)) or "") + text_of(pieces)
        return item

    def _append(self, stem: str, event: JSON, delta: str) -> list[str] | None:
        if stem in _ITEM_TEXTS:
            growing = self._texts.setdefault((_ITEM_TEXTS[stem], None), [])
        elif stem in _PART_TEXTS:
            place, part_type = _PART_TEXTS[stem]
            number = _number(event, place)
            part = self._part(place, number, part_type)
            _add_logprobs(part, event.get("logprobs"))
            growing = self._texts.setdefault((place, number), [])
        else:
            return None
        growing.append(delta)
        return growing

    def _set(self, stem: str, event: JSON) -> None:
        """Takes a text that is complete; the deltas before it may be missing."""
        if stem in _ITEM_TEXTS:
            key = _ITEM_TEXTS[stem]
            if isinstance(event.get(key), str):
                self._texts.pop((key, None), None)
                self.item[key] = event[key]
        elif stem in _PART_TEXTS:
            place, part_type = _PART_TEXTS[stem]
            number = _number(event, place)
            part = self._part(place, number, part_type)
            key = _text_key(part)
            if isinstance(event.get(key), str):
                self._texts.pop((place, number), None)
                part[key] = event[key]

    def _annotate(self, event: JSON) -> None:
        part = self._part("content", _number(event, "content"), "output_text")
        extend(part, "annotations", [event.get("annotation")])

    def _part(self, place: str, number: int, part_type: str) -> JSON:
        """The part with a number, made if no event has announced it."""
        parts = self._parts_of(place)
        part = parts.get(number)
        if not isinstance(part, dict):
            text = {"text": part} if isinstance(part, str) else {}
            part = parts[number] = {"type": part_type, **text}
        return part

    def _parts_of(self, place: str) -> dict[int, Any]:
        if place not in self._parts:
            given = self.item.get(place)
            self._parts[place] = dict(enumerate([given] if isinstance(given, str) else _list(given)))
        return self._parts[place]

    def _grown(self, place: str, number: int, part: Any) -> Any:
        pieces = self._texts.get((place, number))
        if pieces is None or not isinstance(part, dict):
            return copied(part)
        key = _text_key(part)
        return {**copied(part), key: (string(part.get(key)) or "") + text_of(pieces)}


def _number(event: JSON, place: str) -> int:
    return index_of(event.get(f"{place}_index")) or 0


def _text_key(part: JSON) -> str:
    return "refusal" if part.get("type") == "refusal" else "text"


def _add_logprobs(part: JSON, logprobs: Any) -> None:
    if logprobs and isinstance(logprobs, list):
        extend(part, "logprobs", logprobs)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
