"""Folds a reply of `/v1/responses`, streamed or whole, into one message without loss.

The terminal event contains the whole response. The events before it matter only if the stream was cut.
"""

from typing import Any

from proxy.wire.dialect import JSON, WireMessage, objects, string
from proxy.wire.dialect_reply import DialectReply, count
from proxy.wire.endpoint import Choice, Tokens
from proxy.wire.merge import index_of
from proxy.wire.response_item import DELTAS, GrowingItem, identity_of, is_about_item
from proxy.wire.responses_items import reply_of

# One of these events ends a Responses stream, as `[DONE]` ends a chat stream.
TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})
_ADDED = "response.output_item.added"
_ENDED = frozenset({"completed", "incomplete", "failed", "cancelled"})
_UNDER_WAY = frozenset({"queued", "in_progress"})
_IN_BACKGROUND = {
    "message": "The response continues in the background, where it is not recorded.",
    "type": "background",
}
_NOT_DONE: dict[str, JSON] = {
    "failed": {"message": "Upstream says that the response failed.", "type": "failed"},
    "cancelled": {"message": "The response was cancelled at upstream.", "type": "cancelled"},
}
# A larger `output_index` is treated as malformed.
_INDEX_MAX = 10_000

# An item's `output_index`, and its number among the items that upstream has sent: several may have the same index.
_Slot = tuple[int, int]


class ResponseReply(DialectReply):
    """One response."""

    BATCHABLE = frozenset(kind.encode() for kind in DELTAS)
    ENDS = TERMINAL

    def __init__(self, request: JSON | None = None) -> None:
        """`request` is given because the reply may repeat its values; these are not stored again."""
        super().__init__()
        self._request = request or {}
        self._response: JSON = {}
        self._status: Any = None
        self._items: dict[_Slot, GrowingItem] = {}
        self._open: dict[int, GrowingItem] = {}  # the newest item with each index
        self._newest: GrowingItem | None = None
        self._by_id: dict[str, GrowingItem] = {}
        self._last_index = 0
        self._growing: list[str] | None = None  # the list that the last delta was appended to

    # Input

    def take(self, event: JSON) -> None:
        """Folds one event."""
        kind = event.get("type")
        self._growing = None
        if kind == "error":
            self.error = event.get("error") or {key: value for key, value in event.items() if key != "sequence_number"}
        elif isinstance(event.get("response"), dict):
            self._take_response(event["response"], ended_by=str(kind) if kind in TERMINAL else None)
        elif "output_index" in event or is_about_item(str(kind)):
            self._take_item(str(kind), event)
        elif "error" in event and "type" not in event:  # in the shape of chat completions, from vLLM or a proxy
            self.error = event["error"]

    def take_pieces(self, events: list[JSON]) -> None:
        """Folds a batch of deltas. A delta for the same target as the previous one only appends."""
        last = None
        for event in events:
            get = event.get
            place = (
                get("type"),
                get("output_index"),
                get("item_id"),
                get("content_index"),
                get("summary_index"),
                len(event),
            )
            delta = get("delta")
            if place == last and self._growing is not None and type(delta) is str and not get("logprobs"):
                self._growing.append(delta)
            else:
                self.take(event)
                last = place

    def take_body(self, body: JSON) -> None:
        """Takes a whole response or an error body."""
        output = body.get("output")
        self._take_response(body, ended_by="response.completed" if isinstance(output, list) else None)
        listed = enumerate(objects(output))
        self._items = {(index, 0): GrowingItem(item) for index, item in listed}
        if self._status in _UNDER_WAY and not self._items and self.error is None:
            self.error = _IN_BACKGROUND
        if self.error is None and body.get("object") not in (None, "response"):
            self.malformed += 1

    def _take_response(self, response: JSON, *, ended_by: str | None) -> None:
        self._response = response
        self._status = response.get("status")
        if self._status is None and ended_by is not None:
            self._status = ended_by.removeprefix("response.")
        if response.get("error"):
            self.error = response["error"]
        elif self.error is None and isinstance(self._status, str):
            self.error = _NOT_DONE.get(self._status)
        if isinstance(response.get("usage"), dict):
            self.usage = response["usage"]

    def _take_item(self, kind: str, event: JSON) -> None:
        item = event.get("item")
        if not isinstance(item, dict):
            found = self._find(kind, event, id_=string(event.get("item_id")))
            self._growing = None if found is None else found.take(kind, event)
            self.has_token = self.has_token or (self._growing is not None and event["delta"] != "")
        elif (found := self._find(kind, event, id_=identity_of(item))) is not None:
            found.replace(item, is_done=kind != _ADDED)
            if (id_ := identity_of(item)) is not None:
                self._by_id[id_] = found

    def _find(self, kind: str, event: JSON, *, id_: str | None) -> GrowingItem | None:
        """The item that an event is about: the one with its index, unless that has another id.

        Some servers number all items 0, or none; then the id decides, or which item is still open.
        """
        index = index_of(event.get("output_index"))
        found = self._newest if index is None else self._open.get(index)
        if found is None:
            return self._begin(kind, index)
        if id_ is not None and found.identity not in (None, id_):
            found = self._by_id.get(id_) or (None if kind == _ADDED else found)
        elif kind == _ADDED and id_ is None and (found.is_done or index is None):
            found = None
        return self._begin(kind, index) if found is None else found

    def _begin(self, kind: str, index: int | None) -> GrowingItem | None:
        """Starts an item. An item without an index comes after all earlier ones."""
        if not is_about_item(kind) or (index is not None and index >= _INDEX_MAX):
            return None
        self._last_index = max(self._last_index, index or 0)
        slot = (self._last_index if index is None else index, len(self._items))
        self._newest = self._items[slot] = GrowingItem({})
        if index is not None:
            self._open[index] = self._newest
        return self._newest

    # Results

    @property
    def tokens(self) -> Tokens:
        usage = self.usage or {}
        read, written, total = (count(usage, f"{kind}_tokens") for kind in ("input", "output", "total"))
        if total is None and read is not None and written is not None:
            total = read + written
        return Tokens(
            read,
            written,
            total,
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
            return objects(said)
        return [self._items[slot].whole() for slot in sorted(self._items)]

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
        return string(reason) or string(self._status)

    @property
    def is_whole(self) -> bool:
        """Decided by status, not by event name: vLLM 0.32 sends `response.completed` for a reply cut by max tokens."""
        return self._has_ended and self.error is None and self._status in ("completed", "incomplete")

    def to_json_dict(self) -> JSON:
        """The response in its non-streamed form, even if the stream was cut."""
        output = self.output
        whole = {**self._response, "output": output} if output or "output" in self._response else dict(self._response)
        if self.error is not None and not whole.get("error"):
            whole["error"] = self.error
        return whole

    @property
    def _has_ended(self) -> bool:
        return isinstance(self._status, str) and self._status in _ENDED


def _is_echo(value: Any, sent: Any) -> bool:
    """Whether a value repeats the request's, ignoring nulls that upstream adds."""
    return bool(_without_nulls(value) == _without_nulls(sent))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
