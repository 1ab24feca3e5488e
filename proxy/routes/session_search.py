"""Which session a recorded chat belongs to: looked for while upstream works already."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from proxy.errors import UnavailableError
from proxy.recording.one_exchange import Recording
from proxy.services import Services
from proxy.storage import session_lookup
from proxy.storage.exchange import Exchange, SessionRef
from proxy.wire import hash_chain
from proxy.wire.message import title_of

logger = logging.getLogger(__name__)

# The headers wait for the claim of a new session; while the database is locked they do not wait longer.
_CLAIM_SECONDS = 0.3


class SessionSearch:
    """The search for one chat's session. The recording is told of it; without one it keeps the session it was given."""

    def __init__(self, services: Services, recording: Recording, exchange: Exchange) -> None:
        self._services = services
        self._recording = recording
        self._exchange = exchange
        self._search: asyncio.Task[None] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the session is known."""
        return self._search is None or self._search.done()

    def then(self, work: Callable[[], object]) -> None:
        """Do something as soon as the session is known, also where nobody waits for it."""
        assert self._search is not None
        self._search.add_done_callback(lambda _: work())

    def begin(self, *, is_retry: bool) -> None:
        """Look for it, where it takes a look."""
        exchange = self._exchange
        if exchange.session.external_id is not None:
            self._search = asyncio.create_task(self._find(self._find_named(exchange.session)))
        elif exchange.session.source != "new" or not self._services.settings.stitching:
            self._recording.live.is_placed = True
        elif (failed := self._services.recorder.failures.find(exchange, is_retry=is_retry)) is not None:
            self._recording.live.place(SessionRef(failed, "stitched"))
        elif hash_chain.has_reply(exchange.messages):
            self._search = asyncio.create_task(self._find(self._find_stitched()))
        else:
            self._recording.live.is_placed = True

    async def found(self) -> None:
        """Wait until the session is known."""
        if self._search is not None:
            await asyncio.wait([self._search])

    async def _find(self, search: Coroutine[Any, Any, SessionRef]) -> None:
        """Place the chat. One whose session is not found in time goes on; its messages find their place when stored."""
        session = self._exchange.session
        try:
            async with asyncio.timeout(self._services.settings.commit_timeout_seconds):
                session = await search
        except Exception as exc:  # noqa: BLE001 - nothing that goes wrong with the recording may end a chat
            logger.warning("the session of a chat could not be looked up: %r", exc)
        self._recording.live.place(session)

    async def _find_named(self, asked: SessionRef) -> SessionRef:
        assert asked.external_id is not None
        # No write needs to be waited for: a session that is being made is found by the claim, which queues behind it.
        session_id = await self._services.database.look_up(partial(session_lookup.find_named, exchange=self._exchange))
        if session_id is not None:
            return SessionRef(session_id, asked.source)
        # A request without messages may be refused, and would leave an empty session.
        return await self._claim(asked) if self._exchange.messages else asked

    async def _claim(self, asked: SessionRef) -> SessionRef:
        """Make the session now, so that its id holds also where another worker makes it at this moment."""
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

    async def _find_stitched(self) -> SessionRef:
        exchange = self._exchange
        query = partial(session_lookup.list_stitched, exchange=exchange)
        # In strict mode a reply that was seen is on disk.
        read = self._services.database.look_up if self._recording.is_strict else self._services.look_up
        places = await read(query)
        return (
            SessionRef(self._services.recent_branch_points.choose(places).session_id, "stitched")
            if places
            else exchange.session
        )
