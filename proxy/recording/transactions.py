"""Runs many writes in one transaction, in the writer's thread. A failing write does not roll back the others."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from proxy.storage.connection import Connection
from proxy.storage.errors import is_trouble
from proxy.storage.foreseen import expected_of
from proxy.storage.write_batch import UNFINISHED, WriteBatch, write_batch

# As many as the writer takes at once, so that chats wait no longer for a replay than for each other.
_REPLAYED_AT_ONCE = 256

Work = Callable[[WriteBatch], Any]


def commit(connection: Connection, works: Sequence[Work]) -> list[Any]:
    """Runs and commits the first `works`, as many as fit into the time slice; returns their results.

    The result of a failed work is its exception; UNFINISHED means that it needs another transaction.
    """
    try:
        with write_batch(connection) as rows:
            rows.read_ahead(partial(expected_of, works))
            return _in_time(rows, works, lambda work: work(rows))
    except Exception as exc:  # one write failed: run each on its own to find it
        if is_trouble(exc):
            raise
    try:
        with connection.transaction():
            rows = WriteBatch(connection)
            return _in_time(rows, works, lambda work: _commit_one(connection, work))
    except Exception as exc:  # the commit failed: commit each write alone to find the one at fault
        if is_trouble(exc):
            raise
        return [exc] if len(works) == 1 else commit(connection, works[:1])


def _in_time(rows: WriteBatch, works: Sequence[Work], run: Callable[[Work], Any]) -> list[Any]:
    results: list[Any] = []
    for work in works:
        if results and time.monotonic() > rows.slice_ends_at:
            break
        results.append(run(work))
    return results


def _commit_one(connection: Connection, work: Work) -> Any:
    try:
        with connection.savepoint():
            rows = WriteBatch(connection)
            result = work(rows)
            rows.flush()
    except Exception as exc:  # returned to the caller who submitted the write
        if is_trouble(exc) or not connection.in_transaction:
            raise
        return exc
    return result


def replay_lines(
    connection: Connection, lines: Sequence[bytes], replay: Callable[[bytes], Work]
) -> list[tuple[bytes, BaseException]]:
    """Replays spilled lines in as many transactions as needed; returns the lines that failed, with their errors."""
    refused = []
    works = [replay(line) for line in lines]
    done = 0
    while done < len(works):
        for result in commit(connection, works[done : done + _REPLAYED_AT_ONCE]):
            if result is UNFINISHED:
                break
            if isinstance(result, BaseException):
                refused.append((lines[done], result))
            done += 1
    return refused
