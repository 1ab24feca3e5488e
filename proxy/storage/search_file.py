"""The search index file beside the database: opens and attaches it, and rebuilds it if damaged.

The index is derived data: damage slows a search but never changes its results.
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
WHOLE_BYTES = 2**17  # longer messages are read in pieces of this size

# Version of the index format. An index of another version is rebuilt, since it is derived data.
_SCHEMA = 5
# Start of the private use characters, which real texts hardly ever contain. Three of them encode a user.
_PRIVATE_USE = 0xF0000
_TICK_INSTRUCTIONS = 20_000
# SQLite's and FTS5's errors for a damaged index; SQLITE_ERROR is reported for a missing table.
_DAMAGE = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_MISMATCH})


class Segment(NamedTuple):
    """Indexing progress for one range of message numbers."""

    segment: int
    indexed_no: int
    indexed_id: str
    documents: int

    @property
    def first(self) -> int:
        """The first message number of its range."""
        return self.segment * SEGMENT


def index_path(database: Path) -> Path:
    return database.with_name(database.name + "-search")


def statement(name: str, segment: int) -> str:
    """A statement for one segment."""
    return STATEMENTS[name].replace("{segment}", str(int(segment)))


def segments_of(connection: Connection) -> list[Segment]:
    """The segments, newest first; [] if the index is missing or damaged."""
    try:
        return [Segment(*row) for row in connection.execute(STATEMENTS["list_segments"])]
    except sqlite3.Error:
        return []


@lru_cache(maxsize=1024)
def owner(user_id: str) -> str:
    """The token that represents a user in the index.

    A few users may share one, so each candidate's owner is checked.
    """
    return owner_of(tombstones.digest("user", user_id))


def owner_of(user_digest: bytes) -> str:
    """Like `owner`, from the user's digest."""
    return "".join(chr(_PRIVATE_USE + code) for code in struct.unpack(">3H", user_digest[:6]))


# --- connections for searching


@contextmanager
def opened(database: Path) -> Iterator[Connection]:
    """A read-only connection to the database, with the index attached if there is one. Invalid UTF-8 is tolerated."""
    with closing(connect_existing(database)) as connection:
        path = index_path(database)
        if path.is_file() and not _damage_mark(path).exists():
            with suppress(sqlite3.Error):
                connection.execute("ATTACH :path AS search", {"path": str(path)})
                if _version_of(connection, "search") != _SCHEMA:  # about to be rebuilt
                    connection.execute("DETACH search")
        connection.execute("PRAGMA query_only = ON")
        connection.text_factory = text_of
        yield connection


@contextmanager
def interrupted_when(connection: Connection, is_over: Callable[[], bool], raises: type[Exception]) -> Iterator[None]:
    """Interrupts the connection's statements when `is_over()` is true; raises `raises`."""
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
    """The text of a long message, piece by piece; nothing if it was deleted meanwhile."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        blob = connection.blobopen("messages", "content", message_no, readonly=True)
    except sqlite3.OperationalError:
        return
    with blob:
        while data := blob.read(WHOLE_BYTES):
            yield decoder.decode(data)


def is_interrupt(exc: sqlite3.Error) -> bool:
    """Whether we interrupted the statement."""
    return getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT


def text_of(raw: bytes) -> str:
    """Decodes a text, even if it is not valid UTF-8."""
    return raw.decode("utf-8", "replace")


# --- damage


def is_damage(exc: sqlite3.Error) -> bool:
    """Whether the error means damage; temporary errors (a lock, out of memory) do not."""
    return getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _DAMAGE


def mark_damaged(database: Path, reason: object) -> None:
    """Marks the index for rebuilding by the process that fills it. Searches ignore it until then."""
    logger.warning("the search index is damaged and will be rebuilt: %s", reason)
    with suppress(OSError):
        _damage_mark(index_path(database)).touch(mode=0o600)


def mark_damaged_by(connection: Connection, exc: sqlite3.Error) -> None:
    """Like `mark_damaged`, for an index attached by a search."""
    if is_damage(exc):
        files = {name: file for _, name, file in connection.execute("PRAGMA database_list")}
        mark_damaged(Path(files["main"]), exc)


def is_marked_damaged(path: Path) -> bool:
    """Whether a search has found damage in the index."""
    return _damage_mark(path).exists()


def open_index(path: Path) -> Connection:
    """Opens the index file; rebuilds it if it is damaged or has another version."""
    if not is_marked_damaged(path):
        try:
            return _prepared(path)
        except sqlite3.DatabaseError as exc:
            logger.warning("the search index is rebuilt: %s", exc)
    remove(path)
    return _prepared(path)


def remove(path: Path) -> None:
    """Deletes the index. Searches that have it open continue with their copy."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    _damage_mark(path).unlink(missing_ok=True)  # last, so that nobody attaches a partly deleted index


def _damage_mark(path: Path) -> Path:
    return path.with_name(path.name + "-damaged")


def _prepared(path: Path) -> Connection:
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None, factory=SqliteConnection)
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA secure_delete = ON").fetchall()
        # Entries lost by a power failure are indexed again. https://sqlite.org/pragma.html#pragma_synchronous
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
