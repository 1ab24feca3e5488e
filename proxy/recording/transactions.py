"""Runs many writes in one transaction, in the writer's thread; one that fails does not take the others with it."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from proxy.storage.connection import Connection
from proxy.storage.errors import trouble
from proxy.storage.write_batch import UNFINISHED, WriteBatch, write_batch

_REPLAYED_AT_ONCE = 256

Work = Callable[[WriteBatch], Any]


def commit(connection: Connection, works: Sequence[Work]) -> list[Any]:
    """The results of the first works, committed: as many as fit into a slice of time.

    An exception stands for the work that raised it; UNFINISHED for one that wants another transaction.
    """
    try:
        with write_batch(connection) as rows:
            return _in_time(rows, works, lambda work: work(rows))
    except Exception as exc:  # one write cannot be done: find it, and do the others
        if is_trouble(exc):
            raise
    try:
        with connection.transaction():
            rows = WriteBatch(connection)
            return _in_time(rows, works, lambda work: _commit_one(connection, work))
    except Exception as exc:  # what is wrong shows only at the commit: of one alone it is known whose fault it is
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
    except Exception as exc:  # handed to the one who asked for it
        if is_trouble(exc) or not connection.in_transaction:
            raise
        return exc
    return result


def replay_lines(
    connection: Connection, lines: Sequence[bytes], replay: Callable[[bytes], Work]
) -> list[tuple[bytes, BaseException]]:
    """Do what spilled lines stand for, in as many transactions as that takes; those that cannot be done, and why."""
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


def is_trouble(exc: BaseException) -> bool:
    """Whether the error is the database's and passes, not that of what was asked of it."""
    return trouble(exc) != "none"


def is_unknown(exc: BaseException) -> bool:
    """Whether the answer to a COMMIT was lost."""
    return trouble(exc) == "unknown"


def is_lock(exc: BaseException) -> bool:
    """Whether another program holds the write lock."""
    return trouble(exc) == "lock"
