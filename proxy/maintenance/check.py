"""Checks a database's integrity: SQLite's own checks, counts, tree links, values, and the files beside it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from proxy.access.door_marker import DoorMarker
from proxy.maintenance.broken_rows import find_broken_rows
from proxy.recording.dead_letters import count_lines, dead_letter_path
from proxy.recording.spill import OrphanedSpill, spill_files
from proxy.settings import ConfigurationError
from proxy.storage import queries, schema, sqlite_file
from proxy.storage.connection import Connection
from proxy.storage.sqlite import refuse_unknown_schema

# How many problems of each kind are listed individually.
_NAMED = 5
_ROWS_MAX = 1000  # counting stops here

_LISTS = {
    "list_miscounted_users": "users with a wrong count of sessions",
    "list_miscounted_sessions": "sessions with wrong counts, or a newest message that is not theirs",
    "list_misplaced_messages": "messages in the wrong place of their tree",
    "list_misplaced_exchanges": "exchanges that do not belong to their session",
    "list_stray_blobs": "images and files that belong to no message",
}

# Steps about SQLite files; a PostgreSQL server does this itself.
OF_FILES = frozenset({"schema", "file", "links"})


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem: its kind, a one-line description, and examples."""

    kind: str
    message: str
    count: int
    examples: tuple[str, ...] = ()


Find = Callable[[Connection], Iterator[Problem]]


def steps(
    path: Path, *, state_path: Path | None = None, living: Callable[[Connection], set[str]] | None = None
) -> list[tuple[str, Find]]:
    """The check steps in order, each with its name; a step yields the problems it finds.

    `living` returns the processes that serve the database; by default those whose spill files are locked.
    """
    if living is None:
        living = partial(_living_here, path, state_path)
    return [
        ("schema", find_foreign_schema),
        ("file", find_damage),
        ("links", find_broken_links),
        ("values", _find_broken_values),
        *((name, _lister(name, message)) for name, message in _LISTS.items()),
        ("stray_fragments", lambda connection: _find_strays(connection, living(connection))),
        ("unfinished", lambda connection: _find_orphans(connection, living(connection))),
        ("refused", lambda _connection: _find_refused(path, state_path)),
        ("keys", lambda connection: _find_lost_keys(connection, path, state_path)),
    ]


def find_foreign_schema(connection: Connection) -> Iterator[Problem]:
    """Not a StellarChat database, or one with an unknown schema."""
    if not sqlite_file.is_ours(connection):
        yield Problem("schema", "this is not a StellarChat database", 1)
        return
    try:
        refuse_unknown_schema(connection)
    except ConfigurationError as exc:
        yield Problem("schema", str(exc), 1)
        return
    if foreign := schema.foreign_objects(connection):
        yield _problem("schema", "the tables are not those of StellarChat", foreign)


def find_damage(connection: Connection) -> Iterator[Problem]:
    """Damaged pages and indexes."""
    if lines := sqlite_file.find_damage(connection):
        yield _problem("file", "the file is damaged", lines)


def find_broken_links(connection: Connection) -> Iterator[Problem]:
    """Rows with a foreign key to a missing row."""
    if rows := sqlite_file.find_broken_links(connection):
        yield _problem("links", "rows that refer to missing rows", rows)


def _find_broken_values(connection: Connection) -> Iterator[Problem]:
    if rows := find_broken_rows(connection, limit=_ROWS_MAX):
        yield _problem("values", "rows with values that the program never stores", rows)


def living_workers(path: Path, *, state_path: Path | None = None) -> set[str]:
    """The processes serving the database on this host: each holds the lock of its spill file."""
    living = set()
    for worker_id, spill in spill_files(path, folder=state_path).items():
        try:
            OrphanedSpill(spill).close(remove=False)
        except BlockingIOError:
            living.add(worker_id)
    return living


def living_anywhere(connection: Connection) -> set[str]:
    """Like `living_workers`, across all hosts: processes with a recent heartbeat in the database."""
    return set(connection.values("list_living_workers"))


def _living_here(path: Path, state_path: Path | None, _connection: Connection) -> set[str]:
    return living_workers(path, state_path=state_path)


def _lister(name: str, message: str) -> Find:
    def find(connection: Connection) -> Iterator[Problem]:
        found = queries.check.list_inconsistent(connection, name)
        if found:
            yield _problem(name.removeprefix("list_"), message, found)

    return find


def _find_strays(connection: Connection, living: set[str]) -> Iterator[Problem]:
    if not living:  # living processes delete such fragments some time after the reply
        message = "fragments of replies that have already ended: the next start deletes them"
        yield from _lister("list_stray_fragments", message)(connection)


def _find_orphans(connection: Connection, living: set[str]) -> Iterator[Problem]:
    rows = queries.check.list_exchanges_of_workers(connection)
    orphans = [exchange_id for exchange_id, worker_id in rows if worker_id not in living]
    if orphans:
        yield _problem("unfinished", "exchanges in progress whose process has ended: the next start ends them", orphans)


def _find_refused(path: Path, state_path: Path | None) -> Iterator[Problem]:
    letters = dead_letter_path(path, state_path or path.parent)
    if found := count_lines(letters):
        message = f"writes that the database rejected are kept in {letters}: the server retries them at each start"
        yield Problem("refused", message, found)


def _find_lost_keys(connection: Connection, path: Path, state_path: Path | None) -> Iterator[Problem]:
    marker = DoorMarker(path, folder=state_path or path.parent).find()
    if marker is not None and not queries.keys.keys_were_required(connection):
        message = (
            f"this database has never had a key, but {marker} says that keys were required before: its files were "
            "removed or replaced; create a key, or delete that file to open the server to everyone again"
        )
        yield Problem("keys", message, 1)


def _problem(kind: str, message: str, found: Sequence[str]) -> Problem:
    return Problem(kind, message, len(found), tuple(found[:_NAMED]))
