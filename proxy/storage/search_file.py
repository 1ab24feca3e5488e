"""The file of the search index beside the database: how it is opened, attached, and made anew where it is damaged.

It is derived data: any fault of it costs time, never an answer.
"""

import codecs
import logging
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from proxy.storage import tombstones
from proxy.storage.named import SQL, named_statements
from proxy.storage.sqlite import connect_existing
from proxy.storage.sqlite_connection import SqliteConnection

logger = logging.getLogger(__name__)

Connection = SqliteConnection
Error = sqlite3.Error

STATEMENTS = named_statements((SQL / "sqlite" / "search.sql").read_text(encoding="utf-8"))
SEGMENT = 2**18
WHOLE_BYTES = 2**17  # a longer message is read in pieces of this size

_SCHEMA = 5
# Where characters without a meaning begin, which texts hardly ever hold: three of them stand for a user.
_PRIVATE_USE = 0xF0000
_TICK_INSTRUCTIONS = 20_000
# What SQLite and FTS5 say of a file whose content is not what they wrote: SQLITE_ERROR where a table of it is missing.
_DAMAGE = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_MISMATCH})


class Segment(NamedTuple):
    """How far the messages of one range of numbers are indexed."""

    segment: int
    indexed_no: int
    indexed_id: str
    documents: int

    @property
    def first(self) -> int:
        """The number its range begins with."""
        return self.segment * SEGMENT


def index_path(database: Path) -> Path:
    """Where a database's index is."""
    return database.with_name(database.name + "-search")


def statement(name: str, segment: int) -> str:
    """A statement about one segment."""
    return STATEMENTS[name].replace("{segment}", str(int(segment)))


def segments_of(connection: Connection) -> list[Segment]:
    """The segments, newest first; none where the index is missing or damaged."""
    try:
        return [Segment(*row) for row in connection.execute(STATEMENTS["list_segments"])]
    except sqlite3.Error:
        return []


@lru_cache(maxsize=1024)
def owner(user_id: str) -> str:
    """What stands for a user in the index: few users share it, and whose message a candidate is is looked at."""
    return owner_of(tombstones.digest("user", user_id))


def owner_of(user_digest: bytes) -> str:
    """The same, of the user's digest."""
    return "".join(chr(_PRIVATE_USE + code) for code in struct.unpack(">3H", user_digest[:6]))


# --- the connection of a search


@contextmanager
def opened(database: Path) -> Iterator[Connection]:
    """The database, to read, with its index where it has one. Texts that are no UTF-8 are read as far as they are."""
    with closing(connect_existing(database)) as connection:
        path = index_path(database)
        if path.is_file() and not _damage_mark(path).exists():
            with suppress(sqlite3.Error):
                connection.execute("ATTACH :path AS search", {"path": str(path)})
                if _version_of(connection, "search") != _SCHEMA:  # it is about to be made anew
                    connection.execute("DETACH search")
        connection.execute("PRAGMA query_only = ON")
        connection.text_factory = text_of
        yield connection


@contextmanager
def interrupted_when(connection: Connection, is_over: Callable[[], bool], raises: type[Exception]) -> Iterator[None]:
    """End the connection's statements once `is_over` says so, by an exception of the caller's."""
    connection.set_progress_handler(is_over, _TICK_INSTRUCTIONS)
    try:
        yield
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise raises from exc
        raise
    finally:
        connection.set_progress_handler(None, 0)


def pieces_of(connection: Connection, message_no: int) -> Iterator[str]:
    """The text of a long message, piece by piece; nothing of one that was deleted meanwhile."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        blob = connection.blobopen("messages", "content", message_no, readonly=True)
    except sqlite3.OperationalError:
        return
    with blob:
        while data := blob.read(WHOLE_BYTES):
            yield decoder.decode(data)


def is_interrupt(exc: sqlite3.Error) -> bool:
    """Whether the statement was ended by us."""
    return getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT


def text_of(raw: bytes) -> str:
    """A text of the database, also where it is no UTF-8."""
    return raw.decode("utf-8", "replace")


# --- damage


def is_damage(exc: sqlite3.Error) -> bool:
    """Whether it says so; an error that passes (a lock, the memory) does not."""
    return getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _DAMAGE


def mark_damaged(database: Path, reason: object) -> None:
    """Have the index made anew by the process that fills it, and leave it out of searches until then."""
    logger.warning("the search index is damaged and will be made anew: %s", reason)
    with suppress(OSError):
        _damage_mark(index_path(database)).touch(mode=0o600)


def mark_damaged_by(connection: Connection, exc: sqlite3.Error) -> None:
    """The same, for the index that a search has attached."""
    if is_damage(exc):
        files = {name: file for _, name, file in connection.execute("PRAGMA database_list")}
        mark_damaged(Path(files["main"]), exc)


def is_marked_damaged(path: Path) -> bool:
    """Whether a search has come upon damage in the index."""
    return _damage_mark(path).exists()


def open_index(path: Path) -> Connection:
    """The index file, made anew where it is damaged or of another version."""
    if not is_marked_damaged(path):
        try:
            return _prepared(path)
        except sqlite3.DatabaseError as exc:
            logger.warning("the search index is made anew: %s", exc)
    remove(path)
    return _prepared(path)


def remove(path: Path) -> None:
    """Delete the index. Searches that have it open go on with what they have."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    _damage_mark(path).unlink(missing_ok=True)  # last: until then nobody attaches what is half gone


def _damage_mark(path: Path) -> Path:
    return path.with_name(path.name + "-damaged")


def _prepared(path: Path) -> Connection:
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None, factory=SqliteConnection)
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA secure_delete = ON").fetchall()
        # What a power cut takes of it is indexed again. https://sqlite.org/pragma.html#pragma_synchronous
        connection.execute("PRAGMA synchronous = NORMAL")
        _refuse_other_version(connection)
        with connection.transaction():
            connection.execute(STATEMENTS["create_segments"])
            connection.execute(f"PRAGMA user_version = {_SCHEMA}")
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_other_version(connection: Connection) -> None:
    version = _version_of(connection, "main")
    if version not in (0, _SCHEMA):
        raise sqlite3.DatabaseError(f"it has version {version}")


def _version_of(connection: Connection, schema: str) -> int:
    version: int = connection.execute(f"PRAGMA {schema}.user_version").fetchone()[0]
    return version
