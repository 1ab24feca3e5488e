"""Substring search on PostgreSQL, which has no index here: the server pre-filters, the rest is verified in Python.

Verification is shared with `query.py`, so both engines return the same results.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from proxy.search import rank
from proxy.search.deadline import Deadline, TimeOutError
from proxy.search.query import Found, Hit, Order, Query
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.errors import StorageInterruptedError
from proxy.storage.queries.search import Candidate

_CANDIDATES = 2000  # fetched from the server per query
_BATCH_BYTES = 2**20
_PIECE = 2**17  # characters of a text examined at once
_END = 2**63 - 1
_CASES_END = 0x20000  # no character from here on has upper and lower case


def search(
    connection: Connection,
    query: Query,
    *,
    limit: int,
    offset: int = 0,
    order: Order = "relevance",
    deadline: Deadline,
) -> tuple[list[Found], bool]:
    """One page of hits, and whether there are more. Raises TimeOutError."""
    try:
        looked_at = _looked_at(connection, query, deadline)
        hits, has_more = rank.page_of(looked_at, by_score=order == "relevance", limit=limit, offset=offset)
        return [each for hit in hits if (each := _found(connection, hit)) is not None], has_more
    except StorageInterruptedError as exc:
        raise TimeOutError from exc


def _found(connection: Connection, hit: Hit) -> Found | None:
    """The hit's columns; None if the message was deleted meanwhile."""
    message = queries.search.get_hit(connection, hit.message_no)
    session = None if message is None else queries.sessions.get_session(connection, message.pop("session_id"))
    return None if message is None or session is None else Found(hit, message, session)


def _looked_at(connection: Connection, query: Query, deadline: Deadline) -> Iterator[Hit | None]:
    """Verifies every candidate, newest first; yields None for one that does not match."""
    needle = query.text.casefold()
    for batch in _batches(connection, query, deadline):
        texts = queries.search.texts_of(connection, [candidate.message_no for candidate in batch])
        for candidate in batch:
            deadline.check()
            match = rank.look_through(_pieces(texts.pop(candidate.message_no, "")), needle)
            yield None if match is None else Hit(candidate.message_no, match)


def _batches(connection: Connection, query: Query, deadline: Deadline) -> Iterator[list[Candidate]]:
    """The candidates, newest first, in batches limited by memory."""
    conditions: dict[str, Any] = {
        name: getattr(query, name) for name in ("user_id", "session_id", "role", "model", "since", "until")
    }
    needle = query.text.casefold()
    conditions |= {"run": unchanged_run(needle), "ascii": needle if needle.isascii() else None}
    below = _END
    while True:
        deadline.check()
        some = queries.search.list_candidates(connection, conditions, below=below, limit=_CANDIDATES)
        batch: list[Candidate] = []
        size = 0
        for candidate in some:
            if batch and size + candidate.size > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(candidate)
            size += candidate.size
        if batch:
            yield batch
        if len(some) < _CANDIDATES:
            return
        below = some[-1].message_no


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE]


def unchanged_run(text: str) -> str | None:
    """The longest part of the query that occurs literally in every match, whatever its case."""
    runs = [""]
    for character in text:
        if character in _changed():
            runs.append("")
        else:
            runs[-1] += character
    return max(runs, key=len) or None


@lru_cache(maxsize=1)
def _changed() -> frozenset[str]:
    """The characters that case folding changes or produces."""
    changed = set()
    for code in range(_CASES_END):
        character = chr(code)
        if (folded := character.casefold()) != character:
            changed |= {character, *folded}
    return frozenset(changed)
