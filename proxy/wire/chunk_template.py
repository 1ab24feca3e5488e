"""Matches a stream's ordinary chunks against a template, so that only the text that differs is parsed."""

import orjson

from proxy.wire.choice_fold import NEVER_APPENDED
from proxy.wire.endpoint import JSON
from proxy.wire.json_text import loads

_CR, _LF = 13, 10  # `int in bytes` is a direct search; `bytes in bytes` first raises and catches a TypeError internally
BEFORE_DATA, AFTER_DATA = b"data: ", b"\n\n"


class ChunkTemplate:
    """The bytes before and after the text of an ordinary chunk.

    A stream repeats about 200 bytes around each token. If the next event has the same bytes around one JSON string,
    only that string has changed, so nothing else needs to be parsed or folded.
    """

    __slots__ = ("_after", "_before", "_start", "_stop", "key", "pieces")

    def __init__(self, key: str, before: bytes, after: bytes) -> None:
        self.key = key
        self.pieces: list[str] = []
        self._before, self._after = before, after
        self._start, self._stop = len(before), -len(after)

    @classmethod
    def of(cls, data: bytes, chunk: JSON) -> "ChunkTemplate | None":
        choices = chunk.get("choices")
        if type(choices) is not list or len(choices) != 1 or type(choices[0]) is not dict:
            return None
        choice: JSON = choices[0]
        delta = choice.get("delta")
        if type(choice.get("index")) is not int or type(delta) is not dict or len(delta) != 1:
            return None
        (key, text), *_ = delta.items()
        others = (value for name, value in choice.items() if name not in ("index", "delta"))
        if type(text) is not str or key in NEVER_APPENDED or any(value is not None for value in others):
            return None
        return cls._around(data, key, text, chunk)

    @classmethod
    def _around(cls, data: bytes, key: str, text: str, chunk: JSON) -> "ChunkTemplate | None":
        try:
            before, found, _ = data.partition(b'"delta":{"' + key.encode() + b'":')
            after = data[len(before) + len(found) + len(orjson.dumps(text)) :]
            probe = loads(before + found + b'"\\u0000"' + after)
        except (ValueError, orjson.JSONEncodeError):  # escaped or spaced differently from vLLM's JSON
            return None
        if b"\n" in data:  # several `data:` lines
            return None
        chunk["choices"][0]["delta"][key] = "\0"
        return cls(key, before + found, after) if probe == chunk else None

    def piece_of(self, data: bytes) -> str | None:
        """The event's text if it matches the template, else None."""
        if not (data.startswith(self._before) and data.endswith(self._after)):
            return None
        text = data[self._start : self._stop]
        try:
            piece = orjson.loads(text)
        except orjson.JSONDecodeError:
            return None
        return piece if type(piece) is str else None

    def pieces_of(self, events: list[bytes]) -> list[str] | None:
        """The texts of `is_batchable` events if all of them match the template, else None."""
        first, last = BEFORE_DATA + self._before, self._after + AFTER_DATA
        texts = [event[len(first) : -len(last)] for event in events]
        # One comparison for the whole batch. An event that is too short would make one side longer.
        is_alike = first + (last + first).join(texts) + last == b"".join(events)
        return _strings(texts) if is_alike else None

    def event(self, text: str) -> bytes:
        """An event with the given text in the template."""
        return b"".join((BEFORE_DATA, self._before, orjson.dumps(text), self._after, AFTER_DATA))


def is_batchable(data: bytes) -> bool:
    """Whether this is one complete single-line event that can be folded later.

    It must have a choice: then it is neither `[DONE]` nor a usage-only chunk.
    """
    return (
        data[:7] == b"data: {"
        and data.find(b"\n") == len(data) - 2
        and data[-1] == _LF
        and _CR not in data
        and data.count(b'"choices":[{') == data.count(b'"choices"') == 1
    )


def _strings(texts: list[bytes]) -> list[str] | None:
    """Parses one JSON string per line; None if any line is anything else."""
    try:
        # A JSON string cannot contain a raw line end, so a value that spans lines is not a string. If there are as many
        # strings as lines, each line is exactly one string.
        values: list[str] = orjson.loads(b"[" + b",\n".join(texts) + b"]")
    except orjson.JSONDecodeError:
        return None
    return values if len(values) == len(texts) and set(map(type, values)) == {str} else None
