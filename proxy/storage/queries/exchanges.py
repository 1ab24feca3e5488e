"""Queries of the `exchanges` table: requests, their parameters and outcomes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NamedTuple

from proxy.ids import timestamp_after
from proxy.storage.connection import Connection, Numbers, Row
from proxy.storage.damaged_values import built, text_or_none
from proxy.storage.page import Page
from proxy.storage.parameters import Parameters, join

# vLLM forms a reply's id from the request id; StellarChat does the same if upstream sends none.
COMPLETION_PREFIX = "chatcmpl-"


@dataclass(frozen=True, slots=True)
class ExchangeRow:
    """A row of `exchanges`; `context`, `parameters`, `metadata`, `completion` and `error` are JSON text."""

    exchange_no: int
    exchange_id: str
    session_id: str
    session_no: int
    user_id: str
    leaf_no: int | None
    context: str | None
    linked_count: int | None
    endpoint: str
    model: str | None
    status: str
    http_status: int | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    reasoning_tokens: int | None
    cached_tokens: int | None
    time_to_first_token_ms: int | None
    duration_ms: int | None
    parameters: str
    metadata: str | None
    request_id: str
    completion_id: str | None
    completion: str | None
    completion_created: int | None
    error: str | None
    worker_id: str | None
    created_at: str
    completed_at: str | None
    wire: str | None = None
    upstream: str | None = None
    queued_ms: int | None = None
    head_ms: int | None = None
    stored_ms: int | None = None


class Unfinished(NamedTuple):
    """An exchange in progress, with the fields needed to end it."""

    exchange_no: int
    exchange_id: str
    session_id: str
    session_no: int
    user_id: str
    asked_model: str | None
    created_at: str
    leaf_no: int | None
    goes_on: bool  # the request's last message already has a child
    user_no: int
    endpoint: str


class Digests(NamedTuple):
    """The digests by which shared parameters and their tools are looked up."""

    parameters: bytes
    tools: bytes | None

    @classmethod
    def of(cls, parts: Parameters, *, endpoint: str) -> "Digests":
        # Tools are stored separately: they are the largest part of the parameters, and change more rarely.
        tools = None if parts.tools is None else sha256(parts.tools.encode()).digest()
        return cls(sha256(f"{endpoint}\n{parts.common}".encode() + (b"\n" + tools if tools else b"")).digest(), tools)


def keep_parameters(
    connection: Connection,
    parts: Parameters,
    *,
    endpoint: str,
    asked_model: str | None,
    numbers: Callable[[], Numbers],
) -> int:
    """The row id of the shared part of parameters, each stored once. `asked_model` is the model they name.

    `numbers` returns the row ids in use, from which a missing row gets the next one.
    """
    digests = Digests.of(parts, endpoint=endpoint)
    found: int | None = connection.value("find_parameters", {"digest": digests.parameters})
    if found is not None:
        return found
    given = numbers()
    given.parameters_no += 1
    row = {
        "parameters_no": given.parameters_no,
        "digest": digests.parameters,
        "endpoint": endpoint,
        "model": asked_model,
        "data": parts.common,
        "tools_no": digests.tools and _keep_tools(connection, parts.tools, digest=digests.tools, numbers=given),
    }
    connection.store("insert_parameters", [row])
    return given.parameters_no


def _keep_tools(connection: Connection, tools: str | None, *, digest: bytes, numbers: Numbers) -> int:
    found: int | None = connection.value("find_tools", {"digest": digest})
    if found is not None:
        return found
    numbers.tools_no += 1
    connection.store("insert_tools", [{"tools_no": numbers.tools_no, "digest": digest, "data": tools}])
    return numbers.tools_no


def keep_upstream(connection: Connection, name: str, *, numbers: Callable[[], Numbers]) -> int:
    """The row id of an upstream, identified by its address without credentials; `numbers` as in `keep_parameters`."""
    found: int | None = connection.value("find_upstream", {"name": name})
    if found is not None:
        return found
    given = numbers()
    given.upstream_no += 1
    connection.store("insert_upstream", [{"upstream_no": given.upstream_no, "name": name}])
    return given.upstream_no


def insert_exchanges(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Inserts exchanges; each row has all columns."""
    connection.store("insert_exchange", [_shortened(row) for row in rows])


def finish_exchanges(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Stores the outcomes of exchanges in progress, identified by id."""
    connection.store("finish_exchange", [_shortened(row) for row in rows])


def get_exchange_in_progress(connection: Connection, exchange_id: str) -> Unfinished | None:
    """The exchange, or None if it is missing or has ended."""
    row = connection.one("get_exchange_in_progress", {"exchange_id": exchange_id})
    return None if row is None else built(Unfinished, row)


def mark_recovered(connection: Connection, exchange_id: str, *, worker_id: str) -> None:
    """Marks the exchange's end as assumed, because this process seemed dead."""
    connection.changes("mark_recovered", {"exchange_id": exchange_id, "worker_id": worker_id})


def reopen_recovered(connection: Connection, exchange_id: str) -> bool:
    """Whether the exchange's end was only assumed; if so, sets it back to in progress."""
    return connection.changes("reopen_recovered", {"exchange_id": exchange_id}) > 0


def find_exchange_id(connection: Connection, exchange_no: int) -> str | None:
    found: str | None = connection.value("find_exchange_id", {"exchange_no": exchange_no})
    return found


def find_exchange_no(connection: Connection, exchange_id: str) -> int | None:
    found: int | None = connection.value("find_exchange_no", {"exchange_id": exchange_id})
    return found


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    """Omits ids that can be derived from the exchange's own, and a model equal to the requested one."""
    exchange_id, request_id, completion_id = row["exchange_id"], row.get("request_id"), row["completion_id"]
    return row | {
        "request_id": None if request_id == exchange_id else request_id,
        # "" costs no byte in SQLite, an id 45; NULL means that upstream sent none.
        "completion_id": "" if completion_id == COMPLETION_PREFIX + exchange_id else completion_id,
        "model": None if row["model"] == row["asked_model"] else row["model"],
    }


def get_exchange(connection: Connection, exchange_id: str) -> ExchangeRow | None:
    row = connection.one("get_exchange", {"exchange_id": exchange_id})
    return None if row is None else _exchange(row)


def list_exchanges(connection: Connection, *, session_id: str, page: Page) -> list[ExchangeRow]:
    """One page of a session's exchanges, in storage order."""
    parameters = {"session_id": session_id, "limit": page.limit, "offset": page.offset, "after": page.after}
    return [_exchange(row) for row in connection.all("list_exchanges", parameters)]


def _exchange(row: Row) -> ExchangeRow:
    exchange = built(ExchangeRow, with_parameters(row))
    return replace(exchange, completed_at=end_of(exchange.created_at, exchange.duration_ms, exchange.completed_at))


def with_parameters(row: Row) -> Row:
    """An exchange row with its parameters reassembled."""
    tools, own = text_or_none(row.pop("tools")), text_or_none(row.pop("own_parameters"))
    return row | {"parameters": join(text_or_none(row["parameters"]) or "", tools, own)}


def end_of(created_at: str, duration_ms: int | None, completed_at: str | None) -> str | None:
    """When an exchange ended: `completed_at`, or created_at + duration if that is NULL."""
    if completed_at is not None or duration_ms is None:
        return completed_at
    return timestamp_after(created_at, duration_ms)


def count_exchanges(connection: Connection, session_id: str) -> int:
    count: int = connection.value("count_exchanges", {"session_id": session_id})
    return count


def update_exchange_metadata(connection: Connection, *, exchange_id: str, metadata: str | None) -> None:
    connection.changes("update_exchange_metadata", {"exchange_id": exchange_id, "metadata": metadata})


def delete_exchange(connection: Connection, exchange_id: str) -> None:
    """Deletes an exchange but not its messages."""
    connection.changes("delete_exchange", {"exchange_id": exchange_id})


def move_requests(connection: Connection, message_no: int, *, session_id: str, parent_no: int | None) -> None:
    """Makes requests that end with a message end with `parent_no` instead."""
    parameters = {"message_no": message_no, "session_id": session_id, "parent_no": parent_no}
    connection.changes("move_requests", parameters)


def list_contexts(connection: Connection, session_id: str) -> list[tuple[str, str]]:
    """The session's exchanges that had system messages, with their contexts."""
    rows = connection.all("list_contexts", {"session_id": session_id})
    return [(row["exchange_id"], row["context"]) for row in rows]


def update_context(connection: Connection, exchange_id: str, context: str | None) -> None:
    """Sets a request's context (its system messages)."""
    connection.changes("update_context", {"exchange_id": exchange_id, "context": context})


def list_workers_in_progress(connection: Connection) -> list[str]:
    """The processes with exchanges in progress."""
    return connection.values("list_workers_in_progress", {})


def list_exchanges_in_progress(connection: Connection, worker_id: str) -> list[tuple[str, str]]:
    """A process's exchanges in progress, each with its endpoint."""
    rows = connection.all("list_exchanges_in_progress", {"worker_id": worker_id})
    return [(row["exchange_id"], row["endpoint"]) for row in rows]


def list_recovered(connection: Connection, worker_id: str) -> list[tuple[str, str]]:
    """A process's exchanges whose end was assumed and whose fragments are kept, each with its endpoint."""
    rows = connection.all("list_recovered", {"worker_id": worker_id})
    return [(row["exchange_id"], row["endpoint"]) for row in rows]


def find_failed_request(connection: Connection, chain_hash: bytes, *, since: str, limit: int) -> str | None:
    """The session of a failed request that ends with this chain hash, newer than `since`."""
    parameters = {"chain_hash": chain_hash, "since": since, "limit": limit}
    session_id: str | None = connection.value("find_failed_request", parameters)
    return session_id
