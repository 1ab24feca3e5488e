"""The pieces of replies in progress."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from proxy.storage.connection import Connection


def insert_fragments(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Store the next pieces of replies in progress, each with `exchange_id`, `sequence` and `data`."""
    connection.store("insert_fragment", rows)


def iterate_fragments(connection: Connection, exchange_id: str) -> Iterator[bytes]:
    """What a reply in progress had streamed, in order."""
    for row in connection.each("list_fragments", {"exchange_id": exchange_id}):
        yield row["data"]


def list_fragment_range(connection: Connection, exchange_id: str, *, start: int, stop: int | None) -> list[bytes]:
    """What a reply has streamed, from one piece on up to another, or to the last."""
    parameters = {"exchange_id": exchange_id, "start": start, "stop": 2**62 if stop is None else stop}
    return connection.values("list_fragment_range", parameters)


def delete_fragments(connection: Connection, exchange_ids: Iterable[str]) -> None:
    """Delete the pieces of those of the exchanges that have ended."""
    connection.store("delete_fragments", [{"exchange_id": exchange_id} for exchange_id in exchange_ids])


def delete_stray_fragments(connection: Connection, *, before: str) -> None:
    """Delete the pieces of all exchanges that have ended, but those of responses that began after a moment."""
    connection.changes("delete_stray_fragments", {"before": before})
