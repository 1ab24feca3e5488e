"""Merges the deltas of streamed JSON values into complete values without loss. Pure."""

from collections.abc import Iterable
from typing import Any

JSON = dict[str, Any]

# These may be repeated in every delta. Any other string is appended.
SAID_ONCE = frozenset({"role", "id", "type"})
# In list entries, a string under any other key that equals the current value is a repetition (`format`).
_TEXT_KEYS = frozenset({"text", "thinking", "summary", "content", "reasoning", "arguments", "input"})
_TEXT_PARTS = frozenset({"text", "output_text", "thinking", "reasoning", "reasoning.text", "reasoning.summary"})
# Limits the recursion: upstream may nest values arbitrarily.
_DEPTH_MAX = 32


class Pieces(list[str]):
    """A string that is still growing."""


class MergedList(list[Any]):
    """A list whose entries may still grow."""


def merge(target: JSON, key: str, new: object, depth: int = 0, *, repeats: bool = False) -> None:
    """Merges one delta's value into `target`. With `repeats`, strings other than texts may be sent again unchanged."""
    old = target.get(key)
    if new is None:
        target.setdefault(key, None)
    elif isinstance(new, list):
        _merge_list(target, key, new, depth)
    elif old is None:
        target[key] = new
    elif key in SAID_ONCE and isinstance(old, str):
        target[key] = old or new
    elif isinstance(new, str):
        _merge_string(target, key, new, repeats=repeats and key not in _TEXT_KEYS)
    elif isinstance(new, dict) and isinstance(old, dict) and depth < _DEPTH_MAX:
        for name, value in new.items():
            merge(old, name, value, depth + 1, repeats=repeats)
    elif isinstance(new, dict) and _has_information(old):
        _merge_list(target, key, [new], depth)
    else:
        target[key] = new


def growing(target: JSON, key: str) -> Pieces:
    """The pieces of a growing string, to append to."""
    value = target[key]
    if not isinstance(value, Pieces):
        value = target[key] = Pieces([value])
    return value


def joined(value: object, depth: int = 0) -> Any:
    """A copy with growing strings joined. Below the merge depth there are none."""
    if isinstance(value, Pieces):
        return text_of(value)
    if isinstance(value, dict) and depth <= 2 * _DEPTH_MAX:
        return {key: joined(item, depth + 1) for key, item in value.items()}
    if isinstance(value, MergedList):
        return [joined(item, depth + 1) for item in value]
    return value.copy() if isinstance(value, list) else value


def extend(target: JSON, key: str, values: Iterable[Any]) -> None:
    """Appends to the list at `key`; a value that is no list is replaced. A new list each time would take quadratic
    time."""
    known = target.get(key)
    if not isinstance(known, list):
        known = target[key] = []
    known.extend(values)


def text_of(pieces: Iterable[str]) -> str:
    """Joins the pieces. Two halves of a surrogate pair, escaped in separate pieces, become one character."""
    text = "".join(pieces)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return text


def index_of(value: object) -> int | None:
    """An index in any notation: 0, 0.0 or "0"."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < 2**31 else None


def _merge_string(target: JSON, key: str, new: str, *, repeats: bool) -> None:
    old = target[key]
    if isinstance(old, str | Pieces):
        # A name arrives complete, in pieces, or complete again with every piece of the arguments.
        if not ((repeats or key == "name") and "".join(old) == new):
            growing(target, key).append(new)
    elif isinstance(old, list):
        if new:
            target[key] = entries = old if isinstance(old, MergedList) else MergedList(old)
            _add_entry(entries, _as_list(new, key)[0], _DEPTH_MAX - 1)
    elif isinstance(old, dict) and old and new:
        target[key] = MergedList([old, *_as_list(new, key)])
    else:
        target[key] = new


def _merge_list(target: JSON, key: str, new: list[Any], depth: int) -> None:
    old = target.get(key)
    if not new and _has_information(old):
        return
    if type(old) is list and not any(isinstance(each, dict) for each in new):
        old.extend(new)  # token ids and similar: entries do not grow
        return
    if not any(_can_grow(each) for each in new) and not _has_information(old):
        target[key] = new
        return
    if isinstance(old, MergedList):
        entries = old
    else:
        entries = MergedList(_as_list(old, key) if _has_information(old) else ())
        target[key] = entries
    for entry in new:
        _add_entry(entries, entry, depth)


def _can_grow(entry: object) -> bool:
    return isinstance(entry, dict) and (index_of(entry.get("index")) is not None or entry.get("type") in _TEXT_PARTS)


def _add_entry(entries: list[Any], entry: Any, depth: int) -> None:
    """Merges an entry into the one it continues, or appends it."""
    continued = _continued(entries, entry) if depth < _DEPTH_MAX else None
    if continued is None:
        entries.append(entry)
        return
    for name, value in entry.items():
        if name != "index":
            merge(continued, name, value, depth + 1, repeats=True)


def _continued(entries: list[Any], entry: Any) -> JSON | None:
    """The entry with the same index; without an index, the preceding text part."""
    if not isinstance(entry, dict):
        return None
    index = index_of(entry.get("index"))
    if index is None:
        last = entries[-1] if entries else None
        return last if isinstance(last, dict) and "type" in entry and _takes_more(last, entry) else None
    for known in reversed(entries):
        if isinstance(known, dict) and index_of(known.get("index")) == index:
            return known if _is_same(known, entry) else None
    return None


def _is_same(known: JSON, entry: JSON) -> bool:
    """Whether nothing marks this as a new entry. An image always is a new one."""
    return "image_url" not in entry and all(
        not known.get(key) or not entry.get(key) or known[key] == entry[key] for key in ("type", "id")
    )


def _takes_more(last: JSON, entry: JSON) -> bool:
    """Whether an entry without an index continues the last one: text does, until a signature ends it."""
    if index_of(last.get("index")) is not None or last.get("type") not in _TEXT_PARTS or not _is_same(last, entry):
        return False
    return not (last.get("signature") and any(entry.get(key) for key in _TEXT_KEYS))


def _as_list(value: Any, key: str) -> list[Any]:
    """The value as list entries; a text content becomes a text part."""
    if isinstance(value, list) and not isinstance(value, Pieces):
        return value
    value = joined(value)
    return [{"type": "text", "text": value}] if key == "content" and isinstance(value, str) else [value]


def _has_information(value: Any) -> bool:
    """Whether overwriting the value would lose information."""
    return (isinstance(value, list | str | dict)) and bool("".join(value) if isinstance(value, Pieces) else value)
