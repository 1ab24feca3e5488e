"""Queries of the fragments of replies in progress."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from proxy.storage.connection import Connection


def insert_fragments(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Inserts fragments: `exchange_id`, `sequence` and `data`."""
    connection.store("insert_fragment", rows)


def iterate_fragments(connection: Connection, exchange_id: str) -> Iterator[bytes]:
    """The fragments of one reply, in order, up to the first that is missing: one that the database rejects."""
    for expected, row in enumerate(connection.each("list_fragments", {"exchange_id": exchange_id})):
        if row["sequence"] != expected:
            return
        yield row["data"]


def list_fragment_range(connection: Connection, exchange_id: str, *, start: int, stop: int | None) -> list[bytes]:
    """The fragments of one reply from `start` up to `stop`, or all later ones."""
    parameters = {"exchange_id": exchange_id, "start": start, "stop": 2**62 if stop is None else stop}
    return connection.values("list_fragment_range", parameters)


def delete_fragments(connection: Connection, exchange_ids: Iterable[str]) -> None:
    """Deletes the fragments of those of the exchanges that have ended."""
    connection.store("delete_fragments", [{"exchange_id": exchange_id} for exchange_id in exchange_ids])


def delete_stray_fragments(connection: Connection, *, before: str) -> None:
    """Deletes fragments of ended exchanges, except responses that began at or after `before`."""
    connection.changes("delete_stray_fragments", {"before": before})
