"""Folds a chat completion, streamed or whole, into messages without loss.

Never raises on upstream's data: whatever cannot be parsed is counted in `malformed`.
"""

import re
from collections.abc import Iterator
from operator import itemgetter

from proxy.wire import chunk_template
from proxy.wire.choice_fold import ChoiceFold, with_role
from proxy.wire.chunk_template import AFTER_DATA, BEFORE_DATA, ChunkTemplate
from proxy.wire.endpoint import JSON, Choice, Tokens
from proxy.wire.json_text import encoded, object_of_reply, parsed_object
from proxy.wire.merge import Pieces, growing, index_of, merge
from proxy.wire.sse import Event
from proxy.wire.usage import count, tokens_of, usages_of, with_part

# vLLM's first chunk has only the role and empty content, and is sent even while the request is queued.
_TOKEN_KEYS = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls", "function_call", "audio")
# After this many templates a stream is parsed chunk by chunk, because its chunks vary too much.
_ATTEMPTS_MAX = 8
# Limit for upstream's text kept in an error.
_ERROR_LENGTH = 2000
_OF_EVERY_CHUNK = frozenset(
    ("id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier", "obfuscation")
)
# Each choice has a fold of its own. OpenAI's maximum for `n` is 128.
_CHOICES_MAX = 1024
_TOO_MANY_CHOICES = {
    "message": f"The reply has more than {_CHOICES_MAX} choices. The others are not recorded.",
    "type": "reply_too_large",
}
_FILLED_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\{')


class Completion:
    """One reply; implements `endpoint.Reply`."""

    def __init__(self) -> None:
        self.usage: JSON | None = None
        self.error: object | None = None
        self.terminated = False
        self.has_token = False
        self.malformed = 0
        self.unread = b""
        self._top: JSON = {}
        self._folds: dict[int, ChoiceFold] = {}
        self._whole: JSON | None = None
        self._whole_choices: list[Choice] = []
        self._tokens = Tokens()
        self._counted: JSON | None = None  # the usage that `_tokens` are of
        self._template: ChunkTemplate | None = None
        self._attempts_left = _ATTEMPTS_MAX
        # Events that `is_batchable`, as they came: folding in batches is cheaper than per event (cache misses).
        self.batched: list[bytes] = []
        # Whether the next event may be batched. The caller of `feed` sets it; an event that does not match the template
        # clears it. A plain attribute, because it is read for every token.
        self.can_batch = False
        self._unasked: list[bytes] = []  # events already folded but not yet returned by `take_batched`

    @classmethod
    def from_body(cls, body: bytes) -> "Completion":
        """Parses a whole JSON reply or an error body."""
        completion = cls()
        completion.take_whole(body)
        return completion

    def take_whole(self, body: bytes) -> None:
        """Takes a whole reply. Every key is kept as sent, nulls included."""
        whole = self._parsed(body)
        if whole is not None:
            self._whole = whole
            self._take_top(whole)
            choices = list(self._listed(whole, "choices"))
            whole_choices = [self._whole_choice(*each) for each in choices[:_CHOICES_MAX]]
            self._whole_choices = sorted(whole_choices, key=lambda choice: choice.index)
            if len(choices) > _CHOICES_MAX:
                self.error = self.error or _TOO_MANY_CHOICES

    def feed(self, event: Event) -> None:
        """Folds one event. Malformed data is counted, never raised."""
        if self.batched:
            self._fold_batched()
        if event.name == b"error":
            self._take_error(event.data)
        else:
            self._fold(event.data)

    def _take_error(self, data: bytes) -> None:
        """Takes the data of an event named `error`."""
        chunk = parsed_object(data)
        text = data.decode("utf-8", "replace").strip()[:_ERROR_LENGTH]
        self.error = {"message": text} if chunk is None else chunk.get("error") or chunk
        self._template, self.can_batch = None, False

    def is_end(self, event: Event) -> bool:
        """Whether this is `[DONE]`."""
        return is_terminator(event.data)

    def is_usage_only(self, event: Event) -> bool:
        """Whether this is the chunk that `stream_options.include_usage` adds: usage, and no choices."""
        # vLLM sends it right before `[DONE]`; with `continuous_usage_stats` every chunk has usage as well.
        data = event.data
        if data.find(b'"usage"') < 0 or (data.count(b'"choices"') == 1 and _FILLED_CHOICES.search(data)):
            return False
        chunk = _object(data)
        return not chunk.get("choices", []) and isinstance(chunk.get("usage"), dict) and not chunk.get("error")

    def without_usage(self, event: Event) -> bytes:
        """The event without `usage`, if it has other keys (`timings`); b"" if it has none."""
        chunk = _object(event.data)
        if not any(value is not None for key, value in chunk.items() if key not in _OF_EVERY_CHUNK):
            return b""
        others = {key: value for key, value in chunk.items() if key != "usage"}
        return BEFORE_DATA + encoded(others) + AFTER_DATA

    is_batchable = staticmethod(chunk_template.is_batchable)

    def _fold(self, data: bytes) -> None:
        template = self._template
        if template is not None and (piece := template.piece_of(data)) is not None:
            template.pieces.append(piece)
            if not self.has_token:
                self.has_token = piece != "" and template.key in _TOKEN_KEYS
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
        self.has_token = self.has_token or _has_token(chunk)
        self._take_top(chunk)
        for position, choice in self._listed(chunk, "choices"):
            self._fold_choice(position, choice)
        if self._attempts_left and self.malformed == malformed_before and self.error is None:
            self._make_template(data, chunk)

    def take_batched(self) -> bytes:
        """Returns the events batched since the last call, merged into as few events as possible."""
        self._fold_batched()
        events, self._unasked = b"".join(self._unasked), []
        return events

    @property
    def is_ordinary(self) -> bool:
        """Whether the next event probably differs from the last one only in its text."""
        return self._template is not None

    @property
    def id(self) -> str | None:
        return _string(self._top.get("id"))

    @property
    def model(self) -> str | None:
        return _string(self._top.get("model"))

    @property
    def created(self) -> int | None:
        return count(self._top.get("created"))

    @property
    def tokens(self) -> Tokens:
        if self._counted is not self.usage:  # a usage is replaced, never changed
            self._tokens, self._counted = tokens_of(self.usage), self.usage  # in this order, for other threads
        return self._tokens

    @property
    def envelope(self) -> JSON:
        """Every top-level key except choices, usage and error, in the form of a non-streamed reply."""
        envelope = {key: value for key, value in self._top.items() if key not in ("choices", "usage", "error")}
        if envelope.get("object") == "chat.completion.chunk":
            envelope["object"] = "chat.completion"
        return envelope

    @property
    def choices(self) -> list[Choice]:
        self._fold_batched()
        if not self._folds:
            return self._whole_choices
        folded = [fold.choice(index) for index, fold in self._folds.items()]
        return sorted(self._whole_choices + folded, key=lambda choice: choice.index)

    @property
    def finish_reasons(self) -> list[str]:
        """The finish reasons so far, without assembling the messages."""
        return [reason for reason in self._all_finish_reasons() if reason]

    @property
    def finish_reason(self) -> str | None:
        """The first choice's finish reason."""
        return next(iter(self._all_finish_reasons()), None)

    @property
    def is_whole(self) -> bool:
        """Whether every choice has finished without an error.

        `[DONE]` proves nothing: vLLM sends it after errors too.
        """
        reasons = self._all_finish_reasons()
        return bool(reasons) and self.error is None and all(reasons)

    def to_json_dict(self) -> JSON:
        """The reply as upstream would have sent it without streaming."""
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
            text = "".join(pieces)  # a string for each token would take ten times the memory
            template.pieces.append(text)
            self._unasked.append(template.event(text))
            return
        self._unasked += events
        for event in events:
            self._fold(event[len(BEFORE_DATA) : -len(AFTER_DATA)])

    def _parsed(self, data: bytes) -> JSON | None:
        value = object_of_reply(data)
        if value is None:
            self.malformed += 1
            self.unread = self.unread or data[:_ERROR_LENGTH]
        return value

    def _take_top(self, chunk: JSON) -> None:
        top = self._top
        for key, value in chunk.items():
            if value is not None or key not in top:
                top[key] = value
        for usage in usages_of(chunk):
            self._take_usage(usage)
        if error := chunk.get("error"):
            self.error = error
        elif chunk.get("object") == "error" or ("choices" not in chunk and _says_error(chunk)):  # vLLM before 0.10
            self.error = chunk

    def _take_usage(self, usage: object) -> None:
        if isinstance(usage, dict):
            self.usage = with_part(self.usage, usage)
        else:
            self.malformed += 1

    def _listed(self, holder: JSON, key: str) -> Iterator[tuple[int, JSON]]:
        """The objects of a list that may be missing, null, or not a list."""
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
        index = index_of(holder.get("index"))
        self.malformed += index is None and holder.get("index") is not None
        return position if index is None else index

    def _whole_choice(self, position: int, choice: JSON) -> Choice:
        message = choice.get("message")
        if not isinstance(message, dict):
            self.malformed += 1
            message = {}
        self._take_error_of(choice)
        finish_reason = self._finish_reason(choice.get("finish_reason"))
        extra = {key: value for key, value in choice.items() if key not in ("index", "message", "finish_reason")}
        return Choice(self._index(choice, position), with_role(message), finish_reason, extra)

    def _finish_reason(self, value: object) -> str | None:
        self.malformed += value is not None and not isinstance(value, str)
        return _string(value)

    def _take_error_of(self, choice: JSON) -> None:
        """Takes an error that some gateways put into the choice."""
        if isinstance(error := choice.get("error"), dict | str) and error:
            self.error = error

    def _fold_choice(self, position: int, choice: JSON) -> None:
        index = self._index(choice, position)
        fold = self._folds.get(index)
        if fold is None and len(self._folds) >= _CHOICES_MAX:
            self.error = self.error or _TOO_MANY_CHOICES
            return
        if fold is None:
            fold = self._folds[index] = ChoiceFold()
        self._take_error_of(choice)
        for key, value in choice.items():
            # some servers stream a whole reply in one event
            if key == "delta" or (key == "message" and "delta" not in choice):
                self._fold_delta(fold, value)
            elif key == "finish_reason":
                fold.finish_reason = self._finish_reason(value) or fold.finish_reason
            elif key != "index":
                fold.take_extra(key, value)

    def _fold_delta(self, fold: "ChoiceFold", delta: object) -> None:
        if not isinstance(delta, dict):
            self.malformed += delta is not None
            return
        for key, value in delta.items():
            if key == "tool_calls" and value is not None:
                self.malformed += not fold.take_calls(value)
            else:
                merge(fold.message, key, value)

    def _make_template(self, data: bytes, chunk: JSON) -> None:
        """Builds the template if the next chunk may differ only in its text."""
        template = ChunkTemplate.of(data, chunk)
        if template is not None:
            self._attempts_left -= 1
            fold = self._folds[chunk["choices"][0]["index"]]
            if isinstance(fold.message[template.key], str | Pieces):  # it may have become a list earlier
                template.pieces = growing(fold.message, template.key)
                self._template = template


def is_terminator(data: bytes) -> bool:
    return data.lstrip().startswith(b"[DONE]")


def _has_token(chunk: JSON) -> bool:
    """Whether a chunk carries generated text. The first chunk (a role and empty content) does not."""
    choices = chunk.get("choices")
    deltas = (
        [choice.get("delta") for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    )
    return any(delta.get(key) for delta in deltas if isinstance(delta, dict) for key in _TOKEN_KEYS)


def _says_error(chunk: JSON) -> bool:
    """Whether a chunk without choices is an error, even without an `error` key."""
    return chunk.get("type") == "error" or (
        "object" not in chunk and any(isinstance(chunk.get(key), str) for key in ("message", "detail"))
    )


def _object(data: bytes) -> JSON:
    return parsed_object(data) or {}


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None
