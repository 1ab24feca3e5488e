"""Folds a reply of `/v1/messages`, streamed or whole, into one message without loss."""

from typing import Any

from proxy.wire import json_text
from proxy.wire.anthropic_blocks import reply_of
from proxy.wire.dialect import JSON, string
from proxy.wire.dialect_reply import DialectReply, count
from proxy.wire.endpoint import Choice, Tokens
from proxy.wire.merge import extend, text_of

# Which key of its block each delta extends. `input_json_delta` carries JSON text in pieces, parsed at the end.
_DELTAS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}
# The block that a delta extends if no event has started one.
_STARTS: dict[str, JSON] = {
    "thinking_delta": {"type": "thinking", "thinking": ""},
    "signature_delta": {"type": "thinking", "thinking": ""},
    "input_json_delta": {"type": "tool_use", "input": {}},
}
# A larger index is treated as malformed.
_INDEX_MAX = 10_000

# A block's index, and its number among the blocks that upstream has sent: several may have the same index.
_Slot = tuple[int, int]


class MessageReply(DialectReply):
    """One Anthropic message."""

    BATCHABLE = frozenset({b"content_block_delta"})
    ENDS = frozenset({"message_stop"})

    def __init__(self) -> None:
        super().__init__()
        self._message: JSON = {}
        self._blocks: dict[_Slot, JSON] = {}
        self._pieces: dict[_Slot, dict[str, list[str]]] = {}
        self._open: dict[int, _Slot] = {}  # the newest block with each index
        self._growing: list[str] | None = None  # the list that the last delta was appended to
        self._has_stopped = False

    # Input

    def take(self, event: JSON) -> None:
        """Folds one event."""
        kind = event.get("type")
        self._growing = None
        if kind == "message_start" and isinstance(event.get("message"), dict):
            self._take_message(event["message"])
        elif kind == "content_block_start" and isinstance(event.get("content_block"), dict):
            self._begin(_index(event), event["content_block"])
        elif kind == "content_block_delta" and isinstance(event.get("delta"), dict):
            if (index := _index(event)) is not None:
                self._take_delta(index, event["delta"])
        elif kind == "message_delta":
            self._take_end(event)
        elif kind == "message_stop":
            self._has_stopped = True
        elif kind == "error" or "error" in event:
            self.error = event.get("error") or event

    def take_pieces(self, events: list[JSON]) -> None:
        """Folds a batch of deltas. A delta for the same target as the previous one only appends."""
        last: object = None
        for event in events:
            delta = event.get("delta")
            piece = delta if isinstance(delta, dict) and len(delta) == 2 else {}
            kind = piece.get("type")
            place = (event.get("type"), event.get("index"), kind)
            text = piece.get(_DELTAS.get(kind, "")) if isinstance(kind, str) else None
            if place == last and self._growing is not None and isinstance(text, str):
                self._growing.append(text)
            else:
                self.take(event)
                last = place

    def take_body(self, body: JSON) -> None:
        """Takes a whole message or an error body."""
        self._has_stopped = True
        if "error" in body:
            self.error = body["error"]
        elif body.get("type") not in (None, "message"):
            self.malformed += 1
        self._take_message(body)

    def _take_message(self, message: JSON) -> None:
        self._message = message
        content = message.get("content")
        if isinstance(content, str):  # as some servers write it
            content = [{"type": "text", "text": content}]
        if isinstance(content, list):
            self._blocks = {(index, 0): block for index, block in enumerate(content) if isinstance(block, dict)}
            self._pieces = {}
            self._open = {slot[0]: slot for slot in self._blocks}
        self._take_usage(message.get("usage"))

    def _take_end(self, event: JSON) -> None:
        delta = event.get("delta")
        if isinstance(delta, dict):
            self._message.update(delta)
        self._message.update((key, value) for key, value in event.items() if key not in ("type", "delta", "usage"))
        self._take_usage(event.get("usage"))

    def _begin(self, index: int | None, block: JSON) -> _Slot | None:
        """Starts a block. Some servers number all blocks 0."""
        if index is None:
            return None
        slot = self._open[index] = (index, len(self._blocks))
        self._blocks[slot] = block
        return slot

    def _take_delta(self, index: int, delta: JSON) -> None:
        kind = str(delta.get("type"))
        slot = self._open.get(index) or self._begin(index, dict(_STARTS.get(kind, {"type": "text", "text": ""})))
        assert slot is not None
        block = self._blocks[slot]
        if kind == "citations_delta":
            extend(block, "citations", [delta.get("citation")])
            return
        for key, value in delta.items():
            if isinstance(value, str) and key != "type":
                self._growing = self._pieces.setdefault(slot, {}).setdefault(key, [])
                self._growing.append(value)
                self.has_token = self.has_token or bool(value and kind != "signature_delta")
            elif key != "type" and value is not None:  # of a kind that nobody knows yet
                block[key] = value

    def _take_usage(self, usage: Any) -> None:
        """Merges usage key by key, the last value wins: the first event has the input tokens, the last the output
        tokens."""
        if not isinstance(usage, dict):
            return
        if self.usage is None:
            self.usage = {}
        self.usage.update((key, value) for key, value in usage.items() if value is not None)

    # Results

    @property
    def tokens(self) -> Tokens:
        """Adds tokens read from or written to the cache: Anthropic's `input_tokens` excludes them."""
        usage = self.usage or {}
        read, output = count(usage, "input_tokens"), count(usage, "output_tokens")
        cached, written = count(usage, "cache_read_input_tokens"), count(usage, "cache_creation_input_tokens")
        prompt = None if read is None else read + (cached or 0) + (written or 0)
        details = usage.get("output_tokens_details")
        reasoning = count(details, "thinking_tokens")
        return Tokens(
            prompt,
            output,
            None if prompt is None or output is None else prompt + output,
            count(details, "reasoning_tokens") if reasoning is None else reasoning,
            cached,
        )

    @property
    def id(self) -> str | None:
        return string(self._message.get("id"))

    @property
    def model(self) -> str | None:
        return string(self._message.get("model"))

    @property
    def created(self) -> int | None:
        return None

    @property
    def envelope(self) -> JSON:
        """The message without content, usage and error."""
        left_out = ("content", "error", "usage", "role", "type")
        return {key: value for key, value in self._message.items() if key not in left_out}

    @property
    def content(self) -> list[JSON]:
        """The content blocks received so far."""
        self.fold_batched()
        return [self._grown(slot) for slot in sorted(self._blocks)]

    @property
    def choices(self) -> list[Choice]:
        self.fold_batched()
        if not self._blocks and not self.finish_reason:
            return []
        return [Choice(0, reply_of(self.content), self.finish_reason, {})]

    @property
    def finish_reason(self) -> str | None:
        return string(self._message.get("stop_reason"))

    @property
    def is_whole(self) -> bool:
        """Whether a stop reason and `message_stop` have arrived."""
        return self._has_stopped and self.finish_reason is not None and self.error is None

    def to_json_dict(self) -> JSON:
        """The message as a non-streamed reply, even if the stream was cut."""
        if self.error is not None and not self._message.get("id"):
            return {**self._message, "error": self.error}
        whole = {**self._message, "content": self.content}
        return whole | ({"usage": self.usage} if self.usage else {})

    def _grown(self, slot: _Slot) -> JSON:
        block = dict(self._blocks[slot])
        for key, pieces in self._pieces.get(slot, {}).items():
            text = text_of(pieces)
            if key == "partial_json":
                block["input"] = _parsed(text, block.get("input"))
            else:
                block[key] = (string(block.get(key)) or "") + text
        return block


def _index(event: JSON) -> int | None:
    index = event.get("index")
    return index if type(index) is int and 0 <= index < _INDEX_MAX else None


def _parsed(text: str, otherwise: Any) -> Any:
    """A tool call's input; the raw text if the stream was cut inside it."""
    if not text:
        return otherwise
    try:
        return json_text.loads(text)
    except ValueError:
        return text
