"""The open exchanges: saves replies while they stream, and stores each exchange when it ends."""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from proxy.ids import uuid7
from proxy.recording import spill_codec
from proxy.recording.dead_letters import dead_letter_path
from proxy.recording.open_exchange import OpenExchange
from proxy.recording.recent_failures import RecentFailures
from proxy.recording.recovery import Recovery, delete_strays
from proxy.recording.spill import Spill, spill_path
from proxy.recording.write_queue import QueueFullError
from proxy.recording.writer import Writer
from proxy.settings import Settings
from proxy.storage import exchange_store
from proxy.storage.database import Database
from proxy.storage.errors import StorageError, is_trouble
from proxy.storage.exchange import Exchange, Outcome
from proxy.storage.file_identity import MovedError
from proxy.wire import responses
from proxy.wire.endpoint import Reply

logger = logging.getLogger(__name__)

# After the grace period uvicorn cancels open requests; this is the time they have to record their outcome.
# uvicorn starts the lifespan teardown before their `finally` blocks have run, so `drain` must count open exchanges:
# without that, 3 of 3 were lost (measured).
_LAST_WORDS_SECONDS = 5.0
# How long the events of a response are kept after its end, for clients that lost their connection (`starting_after`).
_KEPT_SECONDS = 600.0
# Open exchanges are saved in this many groups, one group at a time, so that no single run delays tokens for long.
_TURNS = 5


class Recorder:
    """Records each exchange once. Every opened exchange must be finished; `drain` waits for that."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.worker_id = uuid7()
        self._settings = settings
        self.is_strict = settings.durability == "strict"  # the end of a reply is sent only after it is on disk
        self._database = database
        self._live: list[set[OpenExchange]] = [set() for _ in range(_TURNS)]
        self._ended: list[str] = []  # exchanges whose fragments are not deleted yet
        # exchanges whose fragments are kept for a while, with their end times
        self._kept: deque[tuple[float, str]] = deque()
        self._strays_at = time.monotonic()
        self._turns = itertools.cycle(range(_TURNS))
        self._ticking: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[None] | None = None
        # `drain` waits for it: the exchanges of cancelled requests end only after the shutdown has begun.
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self.failures = RecentFailures()
        self.observe: Callable[[Exchange, Outcome], None] | None = None  # called with every ended exchange
        dead_letters_path = dead_letter_path(database.path, settings.state_path)
        self._spill = Spill(
            spill_path(database.path, self.worker_id, folder=settings.state_path),
            reserve_bytes=settings.spill_reserve_bytes,
        )
        self.writer = Writer(
            database,
            self._spill,
            replay=spill_codec.replay,
            dead_letters_path=dead_letters_path,
            queue_limit=settings.queue_limit,
            queue_limit_bytes=settings.queue_limit_bytes,
            commit_timeout_seconds=settings.commit_timeout_seconds,
        )
        self.recovery = Recovery(
            database,
            self.writer,
            worker_id=self.worker_id,
            folder=settings.state_path,
            dead_letters_path=dead_letters_path,
        )

    @property
    def live_count(self) -> int:
        """The number of exchanges in progress."""
        return sum(map(len, self._live))

    async def start(self) -> None:
        """Stores what dead processes have left, then accepts exchanges."""
        try:
            await self._database.keep_alive(self.worker_id)
            await self._database.adopt_clock()
            await self.recovery.recover()
        except (StorageError, MovedError, OSError) as exc:
            if isinstance(exc, StorageError) and not is_trouble(exc):
                raise
            logger.error("the chats of ended processes cannot be stored yet: %s", exc)
        await self.writer.start()
        self._ticking = asyncio.create_task(self._tick(), name="recorder")
        self._recovering = asyncio.create_task(self.recovery.run(), name="recovery")

    def open(self, exchange: Exchange, reply: Reply, *, size: int) -> OpenExchange:
        """Starts recording. Nothing is written until the session is known and some time has passed."""
        live = OpenExchange(exchange, reply, size=size, turn=next(self._turns))
        self._live[live.turn].add(live)
        self._is_empty.clear()
        return live

    def find_open(self, response_id: str, *, user_id: str | None) -> OpenExchange | None:
        """This process's response in progress with this id; of any user if `user_id` is None."""
        for lives in self._live:
            for live in lives:
                exchange = live.exchange
                if (
                    exchange.endpoint == responses.PATH
                    and live.reply.id == response_id
                    and exchange.request.get("store") is not False
                    and user_id in (None, exchange.user_id)
                ):
                    return live
        return None

    def is_open(self, live: OpenExchange) -> bool:
        """Whether the exchange is still in progress."""
        return live in self._live[live.turn]

    def finish(self, live: OpenExchange, outcome: Outcome) -> asyncio.Future[Any] | None:
        """Stores the exchange with its outcome. The future is done when it is on disk; None if the queue is full."""
        self._live[live.turn].discard(live)
        if not any(self._live):
            self._is_empty.set()
        keeps_events = live.keeps_events
        if keeps_events:
            self._write_last_events(live)
        exchange, is_begun = live.exchange, live.is_begun
        if outcome.status != "completed":
            self.failures.add(exchange)
        else:
            self.failures.forget(exchange)
        size = live.size + len(live.unwritten())  # folds the batched events; observers of the outcome read the reply
        finish = exchange_store.finish_begun if is_begun else exchange_store.finish
        work = live.foreseen(
            partial(finish, exchange=exchange, outcome=outcome), is_begun=is_begun, upstream=outcome.upstream
        )
        if keeps_events:
            self._kept.append((time.monotonic(), exchange.exchange_id))
        elif live.sequence:
            self._ended.append(exchange.exchange_id)
        saved = None
        try:
            saved = self.writer.submit(
                work,
                spilled=lambda: spill_codec.finish_line(exchange, outcome),
                size=size,
                about=exchange.exchange_id,
            )
        except QueueFullError:
            self.writer.unsaved["queue_full"] += 1
            logger.error("the write queue is full: an exchange is not saved")
        if self.observe is not None:  # last, so that an error in the observer cannot prevent storing
            try:
                self.observe(exchange, outcome)
            except Exception:  # already stored, whatever fails in the observer
                logger.exception("the observer failed for a stored chat")
        return saved

    async def drain(self) -> None:
        """Waits until the open exchanges are finished, writes everything, and closes the files."""
        try:
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._is_empty.wait()
        except TimeoutError:
            logger.error("%d exchanges did not end; the next start saves what they had streamed", self.live_count)
        for task in (self._ticking, self._recovering):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._delete_fragments()
        await self.writer.close()

    async def _tick(self) -> None:
        interval = self._settings.flush_interval_seconds / _TURNS
        due = time.monotonic()
        for lives in itertools.cycle(self._live):
            due = max(due + interval, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            self._save_streams(lives)
            if lives is self._live[-1]:
                self._delete_fragments()

    def _save_streams(self, lives: Iterable[OpenExchange]) -> None:
        """Queues everything streamed since the last time for one transaction. Data that does not fit into the queue
        stays."""
        youngest = time.monotonic() - self._settings.flush_interval_seconds / 4
        for live in lives:
            if live.is_placed and live.opened_at <= youngest:
                try:
                    self._save_stream(live)
                except Exception:  # an error in one exchange must not prevent saving the others
                    logger.exception("a reply in progress could not be saved")

    def _write_last_events(self, live: OpenExchange) -> None:
        """Saves the rest of a stream whose events are kept. Skipped if it does not fit into the queue."""
        live.is_placed = True
        try:
            self._save_stream(live)
        except Exception:  # the exchange itself must still be stored
            logger.exception("the last events of a response could not be saved")

    def _save_stream(self, live: OpenExchange) -> None:
        if not live.is_begun and live.has_content and self.writer.has_room(live.size):
            self._begin(live)
        if live.takes_fragments:
            self._append(live)
        else:
            live.gather()

    def _begin(self, live: OpenExchange) -> None:
        exchange, worker_id = live.exchange, self.worker_id
        self.writer.submit(
            live.foreseen(lambda rows: exchange_store.begin(rows, exchange, worker_id=worker_id)),
            spilled=lambda: spill_codec.begin_line(exchange, worker_id=worker_id),
            size=live.size,
            about=exchange.exchange_id,
        )
        live.is_begun = True

    def _append(self, live: OpenExchange) -> None:
        data = live.unwritten()
        if not data or not self.writer.has_room(len(data)):
            return
        origin, exchange_id, sequence = live.exchange.origin, live.exchange.exchange_id, live.sequence
        self.writer.submit(
            lambda rows: exchange_store.append_fragment(
                rows, origin, exchange_id=exchange_id, sequence=sequence, data=data
            ),
            spilled=lambda: spill_codec.fragment_line(origin, exchange_id=exchange_id, sequence=sequence, data=data),
            size=len(data),
            about=exchange_id,
        )
        live.has_written(data)

    def _delete_fragments(self) -> None:
        """Deletes many at once, so that shared pages are written once.

        What does not fit into the queue is retried later.
        """
        now = time.monotonic()
        while self._kept and self._kept[0][0] < now - _KEPT_SECONDS:
            self._ended.append(self._kept.popleft()[1])
        if now - self._strays_at > _KEPT_SECONDS and self.writer.has_room(0):
            self._strays_at = now
            self.writer.submit(delete_strays, spilled=lambda: spill_codec.delete_fragments_line([]))
        ended = self._ended
        if not ended or not self.writer.has_room(0):
            return
        self._ended = []
        self.writer.submit(
            lambda rows: exchange_store.delete_fragments(rows, ended),
            spilled=lambda: spill_codec.delete_fragments_line(ended),
        )
