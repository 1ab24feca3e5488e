"""One choice of a streamed chat completion while it grows: deltas are merged without losing anything. Pure."""

from typing import Any

from proxy.wire.endpoint import JSON, Choice

# Said once, and then perhaps repeated in every delta; anything else that is a string in a delta is a piece to append.
_SAID_ONCE = frozenset({"role", "id", "type", "name"})
NEVER_APPENDED = _SAID_ONCE | {"tool_calls"}
_MERGED_DEPTH_MAX = 32


class Pieces(list[str]):
    """A string that is still growing."""


class ChoiceFold:
    """One choice of a stream while it grows."""

    __slots__ = ("_calls", "_calls_by_key", "_extra", "finish_reason", "message")

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.message: JSON = {}
        self._extra: JSON = {}
        self._calls: list[tuple[int, JSON]] = []
        self._calls_by_key: dict[int | str, JSON] = {}

    def choice(self, index: int) -> Choice:
        message = {key: _joined(value) for key, value in self.message.items()}
        if self._calls:
            calls = [call for _, call in sorted(self._calls, key=lambda numbered: numbered[0])]
            message["tool_calls"] = _joined(calls)
        return Choice(index, message, self.finish_reason, {key: _joined(value) for key, value in self._extra.items()})

    def take_extra(self, key: str, value: object) -> None:
        """Lists and objects beside the delta (logprobs, token_ids) come in pieces; a string there is a state."""
        if isinstance(value, str):
            self._extra[key] = value
        else:
            merge(self._extra, key, value)

    def take_call(self, piece: JSON) -> None:
        """Calls are told apart by index, which the whole message does not have; without one by id."""
        index, call_id = piece.get("index"), piece.get("id")
        if type(index) is int:
            del piece["index"]
        key = index if type(index) is int else call_id if isinstance(call_id, str) else None
        call = self._calls_by_key.get(key) if key is not None else None
        if call is None:
            call = {}
            self._calls.append((index if type(index) is int else len(self._calls), call))
        for known in (key, call_id):
            if isinstance(known, int | str):
                self._calls_by_key[known] = call
        for name, value in piece.items():
            merge(call, name, value)


def merge(target: JSON, key: str, new: object, depth: int = 0) -> None:
    """Add one delta's value. Unknown strings are appended too: a delta means that, and nothing is lost."""
    old = target.get(key)
    if new is None:
        target.setdefault(key, None)
    elif old is None:
        target[key] = new
    elif key in _SAID_ONCE and isinstance(old, str):
        target[key] = old or new
    elif isinstance(new, str) and isinstance(old, str | Pieces):
        growing(target, key).append(new)
    elif isinstance(new, list) and type(old) is list:
        old.extend(new)
    elif isinstance(new, dict) and isinstance(old, dict) and depth < _MERGED_DEPTH_MAX:
        for name, value in new.items():
            merge(old, name, value, depth + 1)
    else:
        target[key] = new


def growing(target: JSON, key: str) -> Pieces:
    value = target[key]
    if not isinstance(value, Pieces):
        value = target[key] = Pieces([value])
    return value


def _joined(value: object, depth: int = 0) -> Any:
    """A copy in which growing strings are strings; below the depth that is merged there are none."""
    if isinstance(value, Pieces):
        return "".join(value)
    if isinstance(value, dict) and depth <= _MERGED_DEPTH_MAX + 2:
        return {key: _joined(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_joined(item, depth + 1) for item in value] if depth == 0 else value.copy()
    return value
