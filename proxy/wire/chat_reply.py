"""Chat completions: the chunks of a stream, or a whole reply, folded to messages without loss.

Nothing here raises on what an upstream sends: what cannot be understood is counted in `malformed`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import orjson

from proxy.wire.json_text import loads

JSON = dict[str, Any]

# Said once, and then perhaps repeated in every delta; anything else that is a string in a delta is a piece to append.
_SAID_ONCE = frozenset({"role", "id", "type", "name"})
_NEVER_APPENDED = _SAID_ONCE | {"tool_calls"}
_TOKEN_KEYS = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls", "function_call", "audio")
_MERGED_DEPTH_MAX = 32
_NESTING_MAX = 250  # orjson writes 254 levels, so that what was read can be written again
_ATTEMPTS_MAX = 8
_INDEX_MAX = 2**31

_CR, _LF = 13, 10  # `in` looks for a number of a byte at once, and for bytes only after a TypeError
_BEFORE_DATA, _AFTER_DATA = b"data: ", b"\n\n"
_EMPTY_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')


@dataclass(frozen=True, slots=True)
class Choice:
    index: int
    message: JSON  # an OpenAI message, fit to be sent back
    finish_reason: str | None  # exactly as sent
    extra: JSON  # logprobs, stop_reason, token_ids and keys nobody knows yet


class Completion:
    """One reply. Feed it the data of each event, or make it of a whole body."""

    def __init__(self) -> None:
        self.usage: JSON | None = None
        self.error: object | None = None
        self.terminated = False
        self.malformed = 0
        self._top: JSON = {}
        self._folds: dict[int, _Fold] = {}
        self._whole: JSON | None = None
        self._whole_choices: list[Choice] = []
        self._template: _ChunkTemplate | None = None
        self._attempts_left = _ATTEMPTS_MAX
        # Events that `is_batchable`, as they came: folding in batches is cheaper than per event (cache misses).
        self.batched: list[bytes] = []
        # Whether the next event may wait: who feeds the stream says it, and it ends when an event is not ordinary. It
        # stands where a token finds it with one look.
        self.can_batch = False
        self._unasked: list[bytes] = []  # what waited and has been folded, for `take_batched`

    @classmethod
    def from_body(cls, body: bytes) -> "Completion":
        """A whole JSON reply, or an error body; kept key by key as it was sent, nulls included."""
        completion = cls()
        whole = completion._parsed(body)
        if whole is not None:
            completion._whole = whole
            completion._take_top(whole)
            completion._whole_choices = [
                completion._whole_choice(position, choice) for position, choice in completion._listed(whole, "choices")
            ]
        return completion

    def feed(self, data: bytes) -> None:
        """Fold one event's data. What cannot be understood is counted, never raised."""
        self._fold_batched()
        template = self._template
        if template is not None and (piece := template.piece_of(data)) is not None:
            template.pieces.append(piece)
            return
        self._template = None
        self.can_batch = False
        if not data or data.isspace():
            return
        if is_terminator(data):
            self.terminated = True
            return
        malformed_before = self.malformed
        chunk = self._parsed(data)
        if chunk is None:
            return
        self._take_top(chunk)
        for position, choice in self._listed(chunk, "choices"):
            self._fold_choice(position, choice)
        if self._attempts_left and self.malformed == malformed_before and self.error is None:
            self._make_template(data, chunk)

    def take_batched(self) -> bytes:
        """The events that have waited since the last call, as a stream: as few events as mean the same."""
        self._fold_batched()
        events, self._unasked = b"".join(self._unasked), []
        return events

    @property
    def is_ordinary(self) -> bool:
        """Whether the next event is likely to differ from the last in nothing but its text."""
        return self._template is not None

    @property
    def id(self) -> str | None:
        return _string(self._top.get("id"))

    @property
    def model(self) -> str | None:
        return _string(self._top.get("model"))

    @property
    def created(self) -> int | None:
        created = self._top.get("created")
        return created if type(created) is int else None

    @property
    def envelope(self) -> JSON:
        """Every top-level key but choices, usage and error; of a stream what the whole reply would have had."""
        envelope = {key: value for key, value in self._top.items() if key not in ("choices", "usage", "error")}
        if envelope.get("object") == "chat.completion.chunk":
            envelope["object"] = "chat.completion"
        return envelope

    @property
    def choices(self) -> list[Choice]:
        self._fold_batched()
        folded = [fold.choice(index) for index, fold in self._folds.items()]
        return sorted(self._whole_choices + folded, key=lambda choice: choice.index)

    @property
    def finish_reasons(self) -> list[str]:
        """Those of the choices that have one, without putting their messages together."""
        return [reason for reason in self._all_finish_reasons() if reason]

    @property
    def finish_reason(self) -> str | None:
        """The first choice's."""
        return next(iter(self._all_finish_reasons()), None)

    @property
    def is_whole(self) -> bool:
        """Every choice was finished and no error came. [DONE] alone proves nothing: vLLM ends errors with it too."""
        reasons = self._all_finish_reasons()
        return bool(reasons) and self.error is None and all(reasons)

    def to_json_dict(self) -> JSON:
        """The reply as an upstream would have sent it without streaming."""
        if self._whole is not None:
            return self._whole
        choices = [
            {"index": choice.index, "message": choice.message, "finish_reason": choice.finish_reason} | choice.extra
            for choice in self.choices
        ]
        return self.envelope | {"choices": choices, "usage": self.usage}

    def _all_finish_reasons(self) -> list[str | None]:
        self._fold_batched()
        reasons = [(choice.index, choice.finish_reason) for choice in self._whole_choices]
        reasons += [(index, fold.finish_reason) for index, fold in self._folds.items()]
        return [reason for _, reason in sorted(reasons, key=itemgetter(0))]

    def _fold_batched(self) -> None:
        if not self.batched:
            return
        events = self.batched.copy()
        self.batched.clear()
        template = self._template
        pieces = None if template is None else template.pieces_of(events)
        if template is not None and pieces is not None:
            template.pieces += pieces
            self._unasked.append(template.event("".join(pieces)))
            return
        self._unasked += events
        for event in events:
            self.feed(event[len(_BEFORE_DATA) : -len(_AFTER_DATA)])

    def _parsed(self, data: bytes) -> JSON | None:
        try:
            value = _loads(data)
        except ValueError:
            value = None
        if isinstance(value, dict):
            return value
        self.malformed += 1
        return None

    def _take_top(self, chunk: JSON) -> None:
        top = self._top
        for key, value in chunk.items():
            if value is not None or key not in top:
                top[key] = value
        if chunk.get("usage") is not None:
            self._take_usage(chunk["usage"])
        if error := chunk.get("error"):
            self.error = error
        elif chunk.get("object") == "error":  # vLLM before 0.10
            self.error = chunk

    def _take_usage(self, usage: object) -> None:
        if isinstance(usage, dict):
            self.usage = usage
        else:
            self.malformed += 1

    def _listed(self, holder: JSON, key: str) -> Iterator[tuple[int, JSON]]:
        """The objects of a list that may be missing, null, or no list at all."""
        values = holder.get(key)
        if values is None:
            return
        if not isinstance(values, list):
            self.malformed += 1
            return
        for position, value in enumerate(values):
            if isinstance(value, dict):
                yield position, value
            else:
                self.malformed += 1

    def _index(self, holder: JSON, position: int) -> int:
        index = holder.get("index")
        if type(index) is int and 0 <= index < _INDEX_MAX:
            return index
        self.malformed += index is not None
        return position

    def _whole_choice(self, position: int, choice: JSON) -> Choice:
        message = choice.get("message")
        if not isinstance(message, dict):
            self.malformed += 1
            message = {}
        finish_reason = self._finish_reason(choice.get("finish_reason"))
        extra = {key: value for key, value in choice.items() if key not in ("index", "message", "finish_reason")}
        return Choice(self._index(choice, position), message, finish_reason, extra)

    def _finish_reason(self, value: object) -> str | None:
        self.malformed += value is not None and not isinstance(value, str)
        return _string(value)

    def _fold_choice(self, position: int, choice: JSON) -> None:
        index = self._index(choice, position)
        fold = self._folds.get(index)
        if fold is None:
            fold = self._folds[index] = _Fold()
        for key, value in choice.items():
            if key == "delta" or (key == "message" and "delta" not in choice):  # some stream a whole reply in one event
                self._fold_delta(fold, value)
            elif key == "finish_reason":
                fold.finish_reason = self._finish_reason(value) or fold.finish_reason
            elif key != "index":
                fold.take_extra(key, value)

    def _fold_delta(self, fold: "_Fold", delta: object) -> None:
        if not isinstance(delta, dict):
            self.malformed += delta is not None
            return
        for key, value in delta.items():
            if key == "tool_calls" and value is not None:
                fold.message.setdefault(key, [])
                for _, call in self._listed(delta, key):
                    fold.take_call(call)
            else:
                _merge(fold.message, key, value)

    def _make_template(self, data: bytes, chunk: JSON) -> None:
        """Remember what surrounds the text of this chunk, if the next one can differ in nothing but the text."""
        template = _ChunkTemplate.of(data, chunk)
        if template is not None:
            self._attempts_left -= 1
            fold = self._folds[chunk["choices"][0]["index"]]
            template.pieces = _pieces(fold.message, template.key)
            self._template = template


class _Pieces(list[str]):
    """A string that is still growing."""


class _Fold:
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
            _merge(self._extra, key, value)

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
            _merge(call, name, value)


class _ChunkTemplate:
    """The bytes around the text of an ordinary chunk.

    A stream repeats some 200 bytes around each token. When the next event has the same bytes around one JSON string,
    it means what the last one meant, but for that string; so nothing else needs to be parsed or folded.
    """

    __slots__ = ("_after", "_before", "_start", "_stop", "key", "pieces")

    def __init__(self, key: str, before: bytes, after: bytes) -> None:
        self.key = key
        self.pieces: list[str] = []
        self._before, self._after = before, after
        self._start, self._stop = len(before), -len(after)

    @classmethod
    def of(cls, data: bytes, chunk: JSON) -> "_ChunkTemplate | None":
        choices = chunk.get("choices")
        if type(choices) is not list or len(choices) != 1 or type(choices[0]) is not dict:
            return None
        choice: JSON = choices[0]
        delta = choice.get("delta")
        if type(choice.get("index")) is not int or type(delta) is not dict or len(delta) != 1:
            return None
        (key, text), *_ = delta.items()
        others = (value for name, value in choice.items() if name not in ("index", "delta"))
        if type(text) is not str or key in _NEVER_APPENDED or any(value is not None for value in others):
            return None
        return cls._around(data, key, text, chunk)

    @classmethod
    def _around(cls, data: bytes, key: str, text: str, chunk: JSON) -> "_ChunkTemplate | None":
        try:
            before, found, _ = data.partition(b'"delta":{"' + key.encode() + b'":')
            after = data[len(before) + len(found) + len(orjson.dumps(text)) :]
            probe = loads(before + found + b'"\\u0000"' + after)
        except (ValueError, orjson.JSONEncodeError):  # text spelled or spaced in another way than vLLM's
            return None
        if b"\n" in data:  # it came in several lines
            return None
        chunk["choices"][0]["delta"][key] = "\0"
        return cls(key, before + found, after) if probe == chunk else None

    def piece_of(self, data: bytes) -> str | None:
        """The text of an event that differs in nothing else; None for any other event."""
        if not (data.startswith(self._before) and data.endswith(self._after)):
            return None
        text = data[self._start : self._stop]
        try:
            piece = orjson.loads(text)
        except orjson.JSONDecodeError:
            return None
        return piece if type(piece) is str else None

    def pieces_of(self, events: list[bytes]) -> list[str] | None:
        """The texts of events that each `is_batchable`, if all of them differ in nothing else."""
        first, last = _BEFORE_DATA + self._before, self._after + _AFTER_DATA
        texts = [event[len(first) : -len(last)] for event in events]
        # One comparison for all of them: an event that is too short would make the one side longer.
        is_alike = first + (last + first).join(texts) + last == b"".join(events)
        return _strings(texts) if is_alike else None

    def event(self, text: str) -> bytes:
        """An event with another text."""
        return b"".join((_BEFORE_DATA, self._before, orjson.dumps(text), self._after, _AFTER_DATA))


def is_batchable(data: bytes) -> bool:
    """Whether this is one whole event of a stream, on one line, that nobody needs to look into at once: it has a
    choice, so it is neither the end nor only usage."""
    return (
        data[:7] == b"data: {"
        and data.find(b"\n") == len(data) - 2
        and data[-1] == _LF
        and _CR not in data
        and data.count(b'"choices":[{') == data.count(b'"choices"') == 1
    )


def _strings(texts: list[bytes]) -> list[str] | None:
    """The values of JSON strings that are each in one line; None if one of them is no such thing."""
    try:
        # A string cannot go on over a line end, and a list or an object that does is a value that is no string: then as
        # many strings as lines are one a line.
        values: list[str] = orjson.loads(b"[" + b",\n".join(texts) + b"]")
    except orjson.JSONDecodeError:
        return None
    return values if len(values) == len(texts) and set(map(type, values)) == {str} else None


def is_terminator(data: bytes) -> bool:
    return data.lstrip().startswith(b"[DONE]")


def is_usage_only(data: bytes) -> bool:
    """The extra chunk that `stream_options.include_usage` asks for: usage, and no choice."""
    if data.find(b'"usage"') < 0 or not _EMPTY_CHOICES.search(data):
        return False
    chunk = _object(data)
    return chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict) and not chunk.get("error")


def has_token(data: bytes) -> bool:
    """Whether an event carries generated text; the first chunk, role and empty content, does not."""
    choices = _object(data).get("choices")
    deltas = (
        [choice.get("delta") for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    )
    return any(delta.get(key) for delta in deltas if isinstance(delta, dict) for key in _TOKEN_KEYS)


def _loads(data: bytes) -> Any:
    """Raises ValueError, also for what is nested too deeply to be written again."""
    value = loads(data)
    if len(data) > 2 * _NESTING_MAX and data.count(b"[") + data.count(b"{") > _NESTING_MAX and _is_deep(value):
        raise ValueError("JSON is nested too deeply")
    return value


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(_NESTING_MAX):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return True


def _object(data: bytes) -> JSON:
    try:
        value = _loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _merge(target: JSON, key: str, new: object, depth: int = 0) -> None:
    """Add one delta's value. Unknown strings are appended too: a delta means that, and nothing is lost."""
    old = target.get(key)
    if new is None:
        target.setdefault(key, None)
    elif old is None:
        target[key] = new
    elif key in _SAID_ONCE and isinstance(old, str):
        target[key] = old or new
    elif isinstance(new, str) and isinstance(old, str | _Pieces):
        _pieces(target, key).append(new)
    elif isinstance(new, list) and type(old) is list:
        old.extend(new)
    elif isinstance(new, dict) and isinstance(old, dict) and depth < _MERGED_DEPTH_MAX:
        for name, value in new.items():
            _merge(old, name, value, depth + 1)
    else:
        target[key] = new


def _pieces(target: JSON, key: str) -> _Pieces:
    value = target[key]
    if not isinstance(value, _Pieces):
        value = target[key] = _Pieces([value])
    return value


def _joined(value: object, depth: int = 0) -> Any:
    """A copy in which growing strings are strings; below the depth that is merged there are none."""
    if isinstance(value, _Pieces):
        return "".join(value)
    if isinstance(value, dict) and depth <= _MERGED_DEPTH_MAX + 2:
        return {key: _joined(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_joined(item, depth + 1) for item in value] if depth == 0 else value.copy()
    return value
