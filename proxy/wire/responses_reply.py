"""Folds a reply of `/v1/responses`, streamed or whole, into one message without loss.

The terminal event contains the whole response. The events before it matter only if the stream was cut.
"""

from typing import Any

from proxy.wire.dialect import JSON, WireMessage, string
from proxy.wire.dialect_reply import DialectReply, count
from proxy.wire.endpoint import Choice, Tokens
from proxy.wire.json_text import copied
from proxy.wire.merge import text_of
from proxy.wire.responses_items import reply_of
from proxy.wire.sse import Event

TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})
_TERMINAL_NAMES = tuple(name.encode() for name in TERMINAL)
# Where each kind of delta is appended: to a part (by content or summary index), or to the item itself.
_PART_DELTAS = {
    "response.output_text.delta": ("content", "text", "output_text"),
    "response.refusal.delta": ("content", "refusal", "refusal"),
    "response.reasoning_text.delta": ("content", "text", "reasoning_text"),
    "response.reasoning_summary_text.delta": ("summary", "text", "summary_text"),
}
_ITEM_DELTAS = {
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
    "response.mcp_call_arguments.delta": "arguments",
    "response.code_interpreter_call_code.delta": "code",
}
_ENDED = frozenset({"completed", "incomplete", "failed", "cancelled"})
_INDEX_MAX = 10_000


class ResponseReply(DialectReply):
    """One response."""

    BATCHABLE = frozenset(kind.encode() for kind in (*_PART_DELTAS, *_ITEM_DELTAS))

    def __init__(self, request: JSON | None = None) -> None:
        """`request` is given because the reply may repeat its values; these are not stored again."""
        super().__init__()
        self._request = request or {}
        self._response: JSON = {}
        self._items: dict[int, JSON] = {}
        self._pieces: dict[tuple[int, str, int], list[str]] = {}
        self._growing: list[str] | None = None  # the list that the last delta was appended to
        self._has_ended = False

    # Input

    def take(self, event: JSON) -> None:
        """Fold one event."""
        kind = event.get("type")
        self._growing = None
        if kind == "error":
            self.error = event.get("error") or {key: value for key, value in event.items() if key != "sequence_number"}
        elif isinstance(event.get("response"), dict):
            self._take_response(event["response"])
        elif isinstance(index := event.get("output_index"), int) and 0 <= index < _INDEX_MAX:
            self._take_item(index, str(kind), event)
        elif "error" in event and "type" not in event:  # in the shape of chat completions, from vLLM or a proxy
            self.error = event["error"]

    def take_pieces(self, events: list[JSON]) -> None:
        """Folds a batch of deltas. A delta for the same target as the previous one only appends."""
        last = None
        for event in events:
            get = event.get
            place = (get("type"), get("output_index"), get("content_index"), get("summary_index"), len(event))
            delta = get("delta")
            if place == last and self._growing is not None and type(delta) is str:
                self._growing.append(delta)
            else:
                self.take(event)
                last = place

    def take_body(self, body: JSON) -> None:
        """Takes a whole response or an error body."""
        self._take_response(body)
        output = body.get("output")
        self._items = dict(enumerate(filter(_is_object, output))) if isinstance(output, list) else {}
        if self.error is None and body.get("object") not in (None, "response"):
            self.malformed += 1

    def _take_response(self, response: JSON) -> None:
        self._response = response
        self._has_ended = response.get("status") in _ENDED
        if response.get("error"):
            self.error = response["error"]
        if isinstance(response.get("usage"), dict):
            self.usage = response["usage"]

    def _take_item(self, index: int, kind: str, event: JSON) -> None:
        item = self._items.setdefault(index, {})
        if isinstance(event.get("item"), dict):  # output_item.added, or .done, which repeats the whole item
            self._items[index] = event["item"]
            for key in [key for key in self._pieces if key[0] == index]:
                del self._pieces[key]
        elif isinstance(event.get("part"), dict):
            place = "summary" if "summary_index" in event else "content"
            self._take_part(item, place, event, event["part"])
        elif isinstance(delta := event.get("delta"), str):
            self._take_delta(index, item, kind, event, delta)

    def _take_part(self, item: JSON, place: str, event: JSON, part: JSON) -> None:
        number = event.get(f"{place}_index")
        if isinstance(number, int) and 0 <= number < _INDEX_MAX:
            parts = _list(item, place)
            parts.extend({} for _ in range(len(parts), number + 1))
            parts[number] = part
            self._pieces.pop((event["output_index"], place, number), None)

    def _take_delta(self, index: int, item: JSON, kind: str, event: JSON, delta: str) -> None:
        if kind in _ITEM_DELTAS:
            key = (index, _ITEM_DELTAS[kind], -1)
        elif kind in _PART_DELTAS:
            place, _, part_type = _PART_DELTAS[kind]
            number = event.get(f"{place}_index")
            number = number if isinstance(number, int) and 0 <= number < _INDEX_MAX else 0
            key = (index, place, number)
            if key not in self._pieces:
                parts = _list(item, place)
                parts.extend({"type": part_type} for _ in range(len(parts), number + 1))
        else:
            return  # unknown event: the item's `done` event repeats the content
        self._growing = self._pieces.setdefault(key, [])
        self._growing.append(delta)
        self.has_token = self.has_token or delta != ""

    # Results

    def is_end(self, event: Event) -> bool:
        """Whether this is the terminal event."""
        data = event.data
        kind = data[-64:] + data[:64]  # vLLM writes `type` last, OpenAI first
        return any(name in kind for name in _TERMINAL_NAMES)

    @property
    def tokens(self) -> Tokens:
        usage = self.usage or {}
        return Tokens(
            count(usage, "input_tokens"),
            count(usage, "output_tokens"),
            count(usage, "total_tokens"),
            count(usage.get("output_tokens_details"), "reasoning_tokens"),
            count(usage.get("input_tokens_details"), "cached_tokens"),
        )

    @property
    def id(self) -> str | None:
        return string(self._response.get("id"))

    @property
    def model(self) -> str | None:
        return string(self._response.get("model"))

    @property
    def created(self) -> int | None:
        created = self._response.get("created_at")
        return int(created) if isinstance(created, int | float) and not isinstance(created, bool) else None

    @property
    def envelope(self) -> JSON:
        """The response without output, usage and error, and without values repeated from the request."""
        left_out = ("output", "usage", "error")
        return {
            key: value
            for key, value in self._response.items()
            if key not in left_out and not (key in self._request and _is_echo(value, self._request[key]))
        }

    @property
    def output(self) -> list[JSON]:
        """The output items received so far."""
        self.fold_batched()
        said = self._response.get("output")
        if self._has_ended and isinstance(said, list) and (said or not self._items):
            return [item for item in said if isinstance(item, dict)]
        return [self._grown(index) for index in sorted(self._items)]

    @property
    def choices(self) -> list[Choice]:
        output = self.output
        if not output and not self._has_ended:
            return []
        message = reply_of(output)
        if self._request.get("store") is not False:
            ids = [string(item.get("id")) for item in output]
            message = WireMessage(message, message.wire, item_ids=[item_id for item_id in ids if item_id])
        return [Choice(0, message, self.finish_reason, {})]

    @property
    def finish_reason(self) -> str | None:
        """The reason why it is incomplete, else the status; None until it has ended."""
        if not self._has_ended:
            return None
        details = self._response.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        return string(reason) or string(self._response.get("status"))

    @property
    def is_whole(self) -> bool:
        """Decided by status, not by event name: vLLM 0.32 sends `response.completed` for a reply cut by max tokens."""
        return self._has_ended and self.error is None and self._response.get("status") in ("completed", "incomplete")

    def to_json_dict(self) -> JSON:
        """The response in its non-streamed form, even if the stream was cut."""
        output = self.output
        whole = {**self._response, "output": output} if output or "output" in self._response else dict(self._response)
        if self.error is not None and not whole.get("error"):
            whole["error"] = self.error
        return whole

    def _grown(self, index: int) -> JSON:
        """An item including the deltas received for it."""
        item: JSON = copied(self._items[index])
        for (of, place, number), pieces in self._pieces.items():
            if of != index:
                continue
            text = text_of(pieces)
            if number < 0:
                item[place] = (string(item.get(place)) or "") + text
            else:
                part = item[place][number]
                key = "refusal" if part.get("type") == "refusal" else "text"
                part[key] = (string(part.get(key)) or "") + text
        return item


def _is_echo(value: Any, sent: Any) -> bool:
    """Whether a value repeats the request's, ignoring nulls that upstream adds."""
    return bool(_without_nulls(value) == _without_nulls(sent))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _list(item: JSON, key: str) -> list[Any]:
    value = item.get(key)
    if not isinstance(value, list):
        value = item[key] = []
    return value
