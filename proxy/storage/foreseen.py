"""Derives from the exchanges of a transaction's writes which rows to read ahead (`Expected`)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from proxy.storage.exchange import Exchange
from proxy.storage.expected import Expected
from proxy.storage.queries.exchanges import Digests
from proxy.storage.write_batch import WriteBatch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Foreseen(Generic[T]):
    """A write that stores a request, or if `is_begun` only the outcome of one that has a row."""

    work: Callable[[WriteBatch], T]
    exchange: Exchange
    is_begun: bool = False
    upstream: str | None = None

    def __call__(self, rows: WriteBatch) -> T:
        return self.work(rows)


def expected_of(works: Iterable[Callable[[WriteBatch], Any]]) -> Expected:
    """The rows that the `Foreseen` writes will need. Rows missing here are queried one by one, when they are needed."""
    expected = Expected()
    for work in works:
        if isinstance(work, Foreseen):
            _add(expected, work)
    return expected


def _add(expected: Expected, write: Foreseen[Any]) -> None:
    exchange = write.exchange
    if write.upstream is not None:
        expected.upstreams.add(write.upstream)
    if write.is_begun:
        expected.exchanges.add(exchange.exchange_id)
        return
    expected.users.add(exchange.user_id)
    digests = Digests.of(exchange.parts, endpoint=exchange.endpoint)
    expected.parameters.add(digests.parameters)
    if digests.tools is not None:
        expected.tools.add(digests.tools)
    _add_place(expected, exchange)


def _add_place(expected: Expected, exchange: Exchange) -> None:
    session_id, external_id = exchange.session.session_id, exchange.session.external_id
    if external_id is not None:
        expected.named_sessions.add((exchange.user_id, external_id))
    elif not exchange.is_session_new:
        expected.sessions.add(session_id)
        expected.nodes |= {(session_id, hash_) for hash_ in exchange.own_hashes}
        if exchange.chained:
            expected.prefixes.add((session_id, b"".join(exchange.chain[::-1])))
