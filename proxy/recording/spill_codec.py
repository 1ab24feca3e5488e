"""The recorder's writes as lines of the spill file, and back: what begins, goes on and ends an exchange. Pure."""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

from proxy.storage import exchange_store, queries
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.storage.write_batch import WriteBatch
from proxy.wire import json_text
from proxy.wire.chat_reply import Completion


def begin_line(exchange: Exchange, *, worker_id: str) -> bytes:
    """Stands for `archive.begin`."""
    return _line(kind="begin", exchange=_exchange(exchange), worker_id=worker_id)


def fragment_line(*, exchange_id: str, sequence: int, data: bytes) -> bytes:
    """Stands for `archive.append_fragment`."""
    return _line(kind="fragment", exchange_id=exchange_id, sequence=sequence, data=b64encode(data).decode())


def delete_fragments_line(exchange_ids: Sequence[str]) -> bytes:
    """Stands for `archive.delete_fragments`."""
    return _line(kind="delete_fragments", exchange_ids=exchange_ids)


def finish_line(exchange: Exchange, outcome: Outcome, *, is_begun: bool) -> bytes:
    """Stands for `archive.finish`, or `archive.finish_begun`."""
    return _line(kind="finish", exchange=_exchange(exchange), outcome=_outcome(outcome), is_begun=is_begun)


def replay(rows: WriteBatch, line: bytes) -> None:
    """Do what a line stands for; nothing where it is done already."""
    entry = json_text.loads(line)
    if entry["kind"] == "fragment":
        exchange_store.append_fragment(
            rows,
            exchange_id=entry["exchange_id"],
            sequence=entry["sequence"],
            data=b64decode(entry["data"]),
        )
        return
    if entry["kind"] == "delete_fragments":
        exchange_store.delete_fragments(rows, entry["exchange_ids"])
        return
    exchange = _to_exchange(entry["exchange"])
    is_stored = queries.find_exchange_no(rows.about(exchange.exchange_id), exchange.exchange_id) is not None
    if entry["kind"] == "begin":
        if not is_stored:
            exchange_store.begin(rows, exchange, worker_id=entry["worker_id"])
    elif entry["is_begun"]:
        exchange_store.finish_begun(rows, exchange.exchange_id, _to_outcome(entry["outcome"]))
    elif not is_stored:
        exchange_store.finish(rows, exchange, _to_outcome(entry["outcome"]))


def _line(**entry: Any) -> bytes:
    return json_text.dumps(entry).encode()


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
    }


def _to_exchange(entry: dict[str, Any]) -> Exchange:
    return Exchange(
        exchange_id=entry["exchange_id"],
        user_id=entry["user_id"],
        # By now another process may have stored what came later, and made the session.
        session=SessionRef(entry["session_id"], "replayed", entry["external_id"]),
        endpoint=entry["endpoint"],
        request_id=entry["request_id"],
        request=entry["request"],
        created_at=entry["created_at"],
    )


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "status": outcome.status,
        "http_status": outcome.http_status,
        "reply": outcome.reply.to_json_dict() if outcome.reply else None,
        "error": outcome.error,
        "time_to_first_token_ms": outcome.time_to_first_token_ms,
        "duration_ms": outcome.duration_ms,
        "completed_at": outcome.completed_at,
    }


def _to_outcome(entry: dict[str, Any]) -> Outcome:
    reply = entry["reply"]
    return Outcome(
        status=entry["status"],
        http_status=entry["http_status"],
        reply=None if reply is None else Completion.from_body(json_text.dumps(reply).encode()),
        error=entry["error"],
        time_to_first_token_ms=entry["time_to_first_token_ms"],
        duration_ms=entry["duration_ms"],
        completed_at=entry["completed_at"],
    )
