"""Looks up the session of a recorded chat, in parallel with the upstream request."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from proxy.errors import UnavailableError
from proxy.recording.one_exchange import Recording
from proxy.recording.recent_failures import within_seconds
from proxy.services import Services
from proxy.storage import session_lookup
from proxy.storage.exchange import Exchange, SessionRef
from proxy.wire import hash_chain
from proxy.wire.message import title_of

logger = logging.getLogger(__name__)

# The response headers wait for a new session to be claimed, but at most this long if the database is locked.
_CLAIM_SECONDS = 0.3


class SessionFinder:
    """Looks up one chat's session and tells the recording. If that fails, the chat keeps its provisional session."""

    def __init__(self, services: Services, recording: Recording, exchange: Exchange) -> None:
        self._services = services
        self._recording = recording
        self._exchange = exchange
        self._lookup: asyncio.Task[None] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the session is known."""
        return self._lookup is None or self._lookup.done()

    def then(self, work: Callable[[], object]) -> None:
        """Calls `work` as soon as the session is known, even if nobody awaits it."""
        assert self._lookup is not None
        self._lookup.add_done_callback(lambda _: work())

    def begin(self, *, is_retry: bool) -> None:
        """Starts the look-up, if one is needed."""
        exchange = self._exchange
        if exchange.session.external_id is not None:
            self._lookup = asyncio.create_task(self._find(self._find_named(exchange.session)))
        elif exchange.session.source != "new" or not self._services.settings.stitching:
            self._recording.live.is_placed = True
        elif (failed := self._services.recorder.failures.find(exchange, is_retry=is_retry)) is not None:
            self._recording.live.place(SessionRef(failed, "stitched"))
        elif hash_chain.has_reply(exchange.messages):
            self._lookup = asyncio.create_task(self._find(self._find_stitched()))
        elif is_retry or self._services.settings.workers > 1:
            # It may be a retry of a chat that failed in another worker or before a restart. With a reply, stitching
            # finds it.
            self._lookup = asyncio.create_task(self._find(self._find_failed(within_seconds(is_retry=is_retry))))
        else:
            self._recording.live.is_placed = True

    async def found(self) -> None:
        """Waits until the session is known."""
        if self._lookup is not None:
            await asyncio.wait([self._lookup])

    async def _find(self, search: Coroutine[Any, Any, SessionRef]) -> None:
        """Sets the chat's session.

        If the look-up times out, the chat continues; its messages are placed when stored.
        """
        session = self._exchange.session
        try:
            async with asyncio.timeout(self._services.settings.commit_timeout_seconds):
                session = await search
        except Exception as exc:  # noqa: BLE001 - recording errors must never end a chat
            logger.warning("the session of a chat could not be looked up: %r", exc)
        self._recording.live.place(session)

    async def _find_named(self, asked: SessionRef) -> SessionRef:
        assert asked.external_id is not None
        # No need to wait for pending writes: if the session is being created, the claim queues behind that write.
        session_id = await self._services.database.look_up(partial(session_lookup.find_named, exchange=self._exchange))
        if session_id is not None:
            return SessionRef(session_id, asked.source)
        # Do not create a session for a request without messages: it may be rejected, and the session would stay empty.
        return await self._claim(asked) if self._exchange.messages else asked

    async def _claim(self, asked: SessionRef) -> SessionRef:
        """Creates the session now, so that its id is valid even if another worker creates it at the same time."""
        try:
            async with asyncio.timeout(_CLAIM_SECONDS):
                session_id = await self._services.write(
                    partial(
                        session_lookup.get_or_create_session,
                        user_id=self._exchange.user_id,
                        external_id=asked.external_id or "",
                        session_id=asked.session_id,
                        title=title_of(self._exchange.messages),
                        asked_at=self._exchange.asked_at or self._exchange.created_at,
                    )
                )
        except (TimeoutError, UnavailableError):
            return asked
        return SessionRef(session_id, asked.source)

    async def _find_failed(self, seconds: float) -> SessionRef:
        query = partial(session_lookup.find_failed, exchange=self._exchange, seconds=seconds)
        session_id = await self._services.database.look_up(query)
        return self._exchange.session if session_id is None else SessionRef(session_id, "stitched")

    async def _find_stitched(self) -> SessionRef:
        exchange = self._exchange
        query = partial(session_lookup.list_stitched, exchange=exchange)
        # In strict mode, every reply that a client has seen is already in the database.
        read = self._services.database.look_up if self._recording.is_strict else self._services.look_up
        places = await read(query)
        return (
            SessionRef(self._services.recent_branch_points.choose(places).session_id, "stitched")
            if places
            else exchange.session
        )
