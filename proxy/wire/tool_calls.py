"""Assembles the tool calls of a streamed reply: finds the call that each delta belongs to. Pure."""

from typing import Any

from proxy.wire.json_text import dumps, loads
from proxy.wire.merge import JSON, Pieces, index_of, joined, merge


class ToolCalls:
    """Calls are identified by index; if indexes are missing or repeated, by id and by which call is still open."""

    __slots__ = ("_by_id", "_by_index", "_calls", "_open")

    def __init__(self) -> None:
        self._calls: list[tuple[int, JSON]] = []
        self._by_index: dict[int, JSON] = {}
        self._by_id: dict[str, JSON] = {}
        self._open: JSON | None = None

    def __bool__(self) -> bool:
        return bool(self._calls)

    def whole(self) -> list[JSON]:
        """The calls, ordered by index."""
        return [joined(call) for _, call in sorted(self._calls, key=lambda numbered: numbered[0])]

    def take(self, pieces: list[JSON]) -> None:
        """Merges the pieces of one delta.

        Several pieces without index and id are separate calls, numbered by position.
        """
        are_many = len(pieces) > 1
        for place, piece in enumerate(pieces):
            # vLLM numbers each call. Other servers send all with index 0, null, "0" or none, or a name in pieces.
            index, call_id = index_of(piece.pop("index", None)), _text(piece.get("id"))
            if index is None and call_id is None and are_many:
                index = place
            call = self._call_of(index, call_id, piece)
            if index is not None:
                self._by_index[index] = call
            if call_id is not None:
                # Some servers repeat the id in each piece, OpenAI and vLLM send it in the first only.
                self._by_id.setdefault(call_id, call)
            self._open = call
            for name, value in piece.items():
                _merge_call(call, name, value)

    def _call_of(self, index: int | None, call_id: str | None, piece: JSON) -> JSON:
        known = self._by_id.get(call_id) if call_id is not None else None
        if known is not None and (index is None or index in self._by_index):
            return known
        open_ = self._open if call_id is None else None
        found = open_ if index is None else self._by_index.get(index)
        is_another = found is not None and call_id is not None and bool(found.get("id")) and not _goes_on(found, piece)
        if found is None or is_another or _starts_another_call(found, piece, has_index=index is not None):
            found = {}
            self._calls.append((len(self._calls) if index is None else index, found))
        return found


def _goes_on(call: JSON, piece: JSON) -> bool:
    """Whether a piece with another id continues the call: some servers generate a new id for each piece."""
    new, old = _function(piece), _function(call)
    has_text_alone = not new.get("name") and bool(_text(new.get("arguments")))
    return has_text_alone and bool(old.get("name")) and not _is_whole_json(joined(old.get("arguments")))


def _starts_another_call(call: JSON, piece: JSON, *, has_index: bool) -> bool:
    """Whether a piece without an id starts another call: it has a name, and the current arguments are complete."""
    new, old = _function(piece), _function(call)
    if not _text(new.get("name")) or not old.get("name"):
        return False
    if has_index and not new.get("arguments"):
        return False
    return _is_whole_json(joined(old.get("arguments")))


def _merge_call(call: JSON, name: str, value: Any) -> None:
    if name == "function" and isinstance(value, dict) and isinstance(call.get(name), dict):
        for key, new in value.items():
            merge(call[name], key, _arguments(call[name], new) if key == "arguments" else new)
    else:
        merge(call, name, value)


def _arguments(function: JSON, new: Any) -> Any:
    """Arguments sent as a JSON value instead of text; converted to text if text came before."""
    old = function.get("arguments")
    if isinstance(new, dict) and isinstance(old, str | Pieces):
        return dumps(new)
    return new


def _function(call: JSON) -> JSON:
    function = call.get("function")
    return function if isinstance(function, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _is_whole_json(text: Any) -> bool:
    if not isinstance(text, str):
        return isinstance(text, dict)
    try:
        return bool(text) and isinstance(loads(text), dict)
    except ValueError:
        return False
