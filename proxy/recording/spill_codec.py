"""Encodes the recorder's writes (begin, fragment, finish) as lines of the spill file, and decodes them. Pure."""

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from proxy.ids import timestamp
from proxy.storage import exchange_store
from proxy.storage.exchange import Exchange, Origin, Outcome, SessionRef
from proxy.storage.long_request import long_request
from proxy.storage.write_batch import UNFINISHED, WriteBatch
from proxy.wire import json_text
from proxy.wire.chat import CHAT
from proxy.wire.endpoint import Reply
from proxy.wire.endpoints import endpoint_of

# Lines up to this version can be read, including those without a version (0). Missing keys have defaults.
VERSION = 1


def begin_line(exchange: Exchange, *, worker_id: str) -> bytes:
    """Encodes a call of `exchange_store.begin`."""
    return _line(kind="begin", exchange=_exchange(exchange), worker_id=worker_id)


def fragment_line(origin: Origin, *, exchange_id: str, sequence: int, data: bytes) -> bytes:
    """Encodes a call of `exchange_store.append_fragment`."""
    return _line(
        kind="fragment",
        exchange_id=exchange_id,
        user_id=origin.user_id,
        session_id=origin.session_id,
        asked_at=origin.asked_at,
        sequence=sequence,
        data=b64encode(data).decode(),
    )


def delete_fragments_line(exchange_ids: Sequence[str]) -> bytes:
    """Encodes a call of `exchange_store.delete_fragments`."""
    return _line(kind="delete_fragments", exchange_ids=exchange_ids)


def finish_line(exchange: Exchange, outcome: Outcome) -> bytes:
    """Encodes a call of `exchange_store.finish`, or `finish_begun` if the exchange was begun."""
    return _line(kind="finish", exchange=_exchange(exchange), outcome=_outcome(outcome))


def replay(line: bytes) -> Callable[[WriteBatch], Any]:
    """Decodes a line to a function that runs inside a transaction. It does nothing if its write is already stored.

    The function raises ValueError if this program does not understand the line.
    """
    work: Callable[[WriteBatch], Any] | None = None

    def replayed(rows: WriteBatch) -> Any:
        nonlocal work
        if work is None:
            work = _work_of(_parsed(line))
        return work(rows)

    return replayed


def _parsed(line: bytes) -> dict[str, Any]:
    entry = json_text.loads(line)
    if not isinstance(entry, dict):
        raise ValueError("a spilled line is not an object")  # noqa: TRY004 - its text is invalid
    # An unknown line goes to the dead-letter file, where the newer program finds it again.
    if entry.get("v", 0) > VERSION:
        raise ValueError(f"a spilled line of version {entry['v']}; only a newer StellarChat can read it")
    return entry


def _work_of(entry: dict[str, Any]) -> Callable[[WriteBatch], Any]:
    kind = entry.get("kind")
    if kind == "fragment":
        return partial(_append, entry=entry, data=b64decode(entry["data"]))
    if kind == "delete_fragments":
        return partial(exchange_store.delete_fragments, exchange_ids=entry["exchange_ids"])
    exchange = _to_exchange(entry["exchange"])
    if kind == "begin":
        return _in_slices(exchange, partial(_begin, exchange=exchange, worker_id=entry.get("worker_id")))
    if kind == "finish":
        finish = partial(_finish, exchange=exchange, outcome=_to_outcome(entry["outcome"], exchange))
        return _in_slices(exchange, finish)
    raise ValueError(f"a spilled line of an unknown kind: {kind!r}")


def _in_slices(exchange: Exchange, work: Callable[[WriteBatch], Any]) -> Callable[[WriteBatch], Any]:
    long = long_request(exchange)
    if long is None:
        return work
    return lambda rows: work(rows) if long.is_stored(rows) else UNFINISHED


def _append(rows: WriteBatch, *, entry: dict[str, Any], data: bytes) -> None:
    exchange_id, asked_at = entry["exchange_id"], entry.get("asked_at")
    if asked_at is None and not exchange_store.has_row(rows, exchange_id):
        return  # lines of an older program do not contain the user and session, so a deletion cannot be checked
    origin = Origin(entry.get("user_id", ""), entry.get("session_id", ""), asked_at or timestamp())
    exchange_store.append_fragment(rows, origin, exchange_id=exchange_id, sequence=entry["sequence"], data=data)


def _begin(rows: WriteBatch, *, exchange: Exchange, worker_id: str | None) -> Any:
    if not exchange_store.has_row(rows, exchange.exchange_id):
        return exchange_store.begin(rows, exchange, worker_id=worker_id)
    return None


def _finish(rows: WriteBatch, *, exchange: Exchange, outcome: Outcome) -> Any:
    if exchange_store.has_row(rows, exchange.exchange_id):
        return exchange_store.finish_begun(rows, exchange, outcome)
    return exchange_store.finish(rows, exchange, outcome)


def _line(**entry: Any) -> bytes:
    return json_text.encoded({"v": VERSION, **entry})


def _exchange(exchange: Exchange) -> dict[str, Any]:
    return {
        "exchange_id": exchange.exchange_id,
        "user_id": exchange.user_id,
        "session_id": exchange.session.session_id,
        "external_id": exchange.session.external_id,
        "endpoint": exchange.endpoint,
        "request_id": exchange.request_id,
        "request": exchange.request,
        "created_at": exchange.created_at,
        "asked_at": exchange.asked_at,
    }


def _to_exchange(entry: dict[str, Any]) -> Exchange:
    return Exchange(
        exchange_id=entry["exchange_id"],
        user_id=entry["user_id"],
        # Another process may meanwhile have stored later messages and created the session.
        session=SessionRef(entry["session_id"], "replayed", entry.get("external_id")),
        endpoint=entry.get("endpoint", CHAT.path),
        request_id=entry.get("request_id", entry["exchange_id"]),
        request=entry.get("request", {}),
        created_at=entry["created_at"],
        asked_at=entry.get("asked_at"),
    )


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "status": outcome.status,
        "http_status": outcome.http_status,
        "reply": outcome.reply.to_json_dict() if outcome.reply else None,
        "error": outcome.error,
        "time_to_first_token_ms": outcome.time_to_first_token_ms,
        "duration_ms": outcome.duration_ms,
        "upstream": outcome.upstream,
        "queued_ms": outcome.queued_ms,
        "head_ms": outcome.head_ms,
        "completed_at": outcome.completed_at,
    }


def _to_outcome(entry: dict[str, Any], exchange: Exchange) -> Outcome:
    said = entry.get("reply")
    reply: Reply | None = None
    if said is not None:
        reply = endpoint_of(exchange.endpoint).reply(exchange.asked)
        reply.take_whole(json_text.encoded(said))
    outcome = Outcome(
        status=entry["status"],
        http_status=entry.get("http_status"),
        reply=reply,
        error=entry.get("error"),
        time_to_first_token_ms=entry.get("time_to_first_token_ms"),
        duration_ms=entry.get("duration_ms"),
        upstream=entry.get("upstream"),
        queued_ms=entry.get("queued_ms"),
        head_ms=entry.get("head_ms"),
    )
    outcome.completed_at = entry.get("completed_at", outcome.completed_at)
    return outcome
