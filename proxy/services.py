"""The services that handlers share, and the handlers' access to the database: read, look up, write, delete."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict, TypeVar

from proxy.access.gate import Gate
from proxy.downstream.whole_response import Backlog
from proxy.errors import ReadTimeoutError, UnavailableError
from proxy.maintenance.export_file import Exports
from proxy.recording.branch_points import RecentBranchPoints
from proxy.recording.recorder import Recorder
from proxy.recording.write_queue import QueueFullError
from proxy.search.turns import BusyError, Turns
from proxy.settings import Settings
from proxy.storage.connection import Connection
from proxy.storage.database import READ_SECONDS, READERS, Database
from proxy.storage.errors import StorageInterruptedError, StorageUnavailableError
from proxy.storage.fair_turns import FairTurns, TurnsFullError, current_caller
from proxy.storage.wal import LogEmptier
from proxy.telemetry.observer import Observer
from proxy.upstream.upstreams import Upstreams

T = TypeVar("T")

# Limits on running and waiting reads, per caller and in total.
_READS_PER_CALLER = 64
# Each waiting read keeps its request in memory. A caller's reads wait for each other and delay no other caller's.
_READS_MAX = 512
_READ_WAIT_SECONDS = 30.0


def _read_turns() -> FairTurns:
    return FairTurns(places=READERS, per_caller=_READS_PER_CALLER, waiting=_READS_MAX, wait_seconds=_READ_WAIT_SECONDS)


@dataclass(frozen=True, slots=True)
class Services:
    """One process's settings, database, recorder and upstreams."""

    settings: Settings
    database: Database
    recorder: Recorder
    upstreams: Upstreams
    searches: Turns = field(default_factory=Turns)
    exports: Exports = field(default_factory=Exports)
    reads: FairTurns = field(default_factory=_read_turns)
    backlog: Backlog = field(default_factory=Backlog)
    log: LogEmptier = field(init=False)
    vendor_headers: tuple[bytes, ...] = field(init=False)
    without_usage: set[str] = field(default_factory=set, init=False)  # models whose upstream rejects `stream_options`
    recent_branch_points: RecentBranchPoints = field(default_factory=RecentBranchPoints, init=False)

    def __post_init__(self) -> None:
        names = tuple(name.lower().encode() for name in self.settings.session_headers)
        object.__setattr__(self, "vendor_headers", names)
        object.__setattr__(self, "log", LogEmptier(self.database.path))

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs a query that sees every exchange that has ended, unless the database fails. Raises APIError."""
        await self.recorder.writer.flushed()
        try:
            async with self.reads.turn(current_caller.get()()):
                return await self.database.read(work)
        except TurnsFullError as exc:
            raise BusyError("read") from exc
        except StorageInterruptedError as exc:
            raise ReadTimeoutError(READ_SECONDS) from exc
        except StorageUnavailableError as exc:
            raise UnavailableError from exc

    async def look_up(self, work: Callable[[Connection], T]) -> T:
        """Like `read`, for the look-ups at the start of a chat: never waits behind lists and histories."""
        await self.recorder.writer.on_disk()
        return await self.database.look_up(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Makes a change; it is on disk when this returns. Raises UnavailableError."""
        try:
            return await self.recorder.writer.submit(lambda rows: work(rows.connection))
        except QueueFullError as exc:
            raise UnavailableError from exc

    async def delete(self, work: Callable[[Connection], T]) -> T:
        """Like `write`; the deleted rows also leave the write-ahead log soon."""
        result = await self.write(work)
        self.log.want()
        return result


class State(TypedDict):
    """The lifespan state of the application."""

    settings: Settings
    services: Services
    gate: Gate
    observer: Observer
