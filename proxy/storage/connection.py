"""What the program may do with a database connection: run named queries. Knows no engine."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

Row = dict[str, Any]
"""A row by the names of its columns."""

Parameters = Mapping[str, Any]


@dataclass(slots=True)
class Numbers:
    """The last row ids given out; whoever holds the write lock counts on."""

    session_no: int
    message_no: int
    exchange_no: int


class Connection(Protocol):
    """A connection of any engine. Every method raises `StorageError`.

    `name` is that of a query in `sql/queries`; SQL text is given to nobody outside `storage`.
    """

    def one(self, name: str, parameters: Parameters = ..., /) -> Row | None:
        """The first row."""
        ...

    def all(self, name: str, parameters: Parameters = ..., /) -> list[Row]:
        """Every row."""
        ...

    def each(self, name: str, parameters: Parameters = ..., /) -> Iterator[Row]:
        """Every row, read from the database as it is asked for."""
        ...

    def value(self, name: str, parameters: Parameters = ..., /) -> Any:
        """The only column of the first row; None where there is no row."""
        ...

    def values(self, name: str, parameters: Parameters = ..., /) -> list[Any]:
        """The only column of every row."""
        ...

    def changes(self, name: str, parameters: Parameters = ..., /) -> int:
        """Run a change; how many rows it changed."""
        ...

    def store(self, name: str, rows: Sequence[Parameters], /) -> None:
        """Run a statement that has one row of VALUES for many rows, with few statements."""
        ...

    def numbers(self) -> Numbers:
        """The last row ids, inside a write transaction."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """A write transaction around a block: committed at its end, rolled back when it raises."""
        ...

    def savepoint(self) -> AbstractContextManager[None]:
        """A part of a transaction that is undone alone when it raises."""
        ...

    def snapshot(self) -> AbstractContextManager[None]:
        """A read transaction around a block: all of it sees the database as it was at the first query."""
        ...

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open; an engine may have rolled it back itself."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...
