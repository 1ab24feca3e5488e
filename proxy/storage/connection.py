"""The interface of a database connection: runs named queries. Independent of the engine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from proxy.storage.expected import Expected

Row = dict[str, Any]
"""A row: column name to value."""

Parameters = Mapping[str, Any]


@dataclass(slots=True)
class Numbers:
    """The highest row ids in use. The holder of the write lock assigns the next ones itself."""

    session_no: int
    message_no: int
    exchange_no: int
    user_no: int
    parameters_no: int
    tools_no: int
    upstream_no: int


class Connection(Protocol):
    """A connection of any engine. Every method raises `StorageError`.

    `name` is the name of a query in `sql/queries`. SQL text never leaves `storage`.
    """

    def one(self, name: str, parameters: Parameters = ..., /) -> Row | None:
        """The first row, or None."""
        ...

    def all(self, name: str, parameters: Parameters = ..., /) -> list[Row]:
        """Every row."""
        ...

    def each(self, name: str, parameters: Parameters = ..., /) -> Iterator[Row]:
        """Iterates over the rows; an engine may fetch them lazily."""
        ...

    def value(self, name: str, parameters: Parameters = ..., /) -> Any:
        """The single column of the first row; None if there is no row."""
        ...

    def values(self, name: str, parameters: Parameters = ..., /) -> list[Any]:
        """The single column of every row."""
        ...

    def changes(self, name: str, parameters: Parameters = ..., /) -> int:
        """Runs an INSERT, UPDATE or DELETE; returns the number of affected rows."""
        ...

    def store(self, name: str, rows: Sequence[Parameters], /) -> None:
        """Runs a statement with one row of VALUES for many rows, in as few statements as possible."""
        ...

    def numbers(self) -> Numbers:
        """The highest row ids. Call it inside a write transaction."""
        ...

    def read_ahead(self, expected: Callable[[], Expected]) -> None:
        """Reads what a write transaction will look up, at its beginning. An engine without round trips does nothing."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """A write transaction: committed when the block ends, rolled back when it raises."""
        ...

    def savepoint(self) -> AbstractContextManager[None]:
        """A nested transaction that is rolled back alone when the block raises."""
        ...

    def snapshot(self) -> AbstractContextManager[None]:
        """A read transaction: all reads see the database as of the first query."""
        ...

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open. Not always predictable: the engine may roll one back by itself."""
        ...

    def close(self) -> None: ...
