"""The upstreams of the settings: which serves a request, failover before the first byte, health and models."""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from proxy.errors import APIError, UpstreamError
from proxy.settings import Settings, UpstreamAddress
from proxy.upstream.choice import choose
from proxy.upstream.client import Response, Upstream
from proxy.upstream.request import Body
from proxy.wire.headers import Headers

logger = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
# How often the model lists are asked for, and at most when a model is asked for that nobody is known to serve.
_MODELS_SECONDS = 30.0
_UNKNOWN_MODEL_SECONDS = 1.0
_CHECK_SECONDS = 1.0
# Answers that say the request was not worked on; another upstream may take it.
_NOT_WORKED_ON = frozenset({502, 503, 504})


class UnknownModelError(APIError):
    """404 in vLLM's words: no upstream serves the model."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model `{model[:256]}` does not exist.", status=404, type_="NotFoundError", param="model", code="404"
        )

    def as_json(self) -> dict[str, Any]:
        """vLLM's code is a number."""
        return {"error": {**super().as_json()["error"], "code": 404}}


@dataclass(slots=True)
class OpenedResponse:
    """A response whose head has come, and the upstream it comes from. Close it once."""

    response: Response
    upstream: Upstream

    def close(self) -> None:
        """Leave; upstream notices where the body has not ended."""
        self.upstream.open_count -= 1
        self.response.close()


class Upstreams:
    """All upstreams of one process."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._transport = transport
        self._settings = settings
        self._all = [Upstream(settings, address, transport) for address in settings.upstreams]
        self._leaving: list[Upstream] = []  # taken off the list; their streams go on to the end
        self._watching: asyncio.Task[None] | None = None
        self._by_model: dict[str, list[Upstream]] = {}  # found once until the model lists are read again
        self._models_at = 0.0
        self._has_asked = False  # all of them for their models
        self._refreshing: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[str] | None = None
        self._checked_at = 0.0

    @property
    def all(self) -> tuple[Upstream, ...]:
        """The upstreams of the settings, in their order."""
        return tuple(self._all)

    @property
    def are_several(self) -> bool:
        """Whether a request's model and conversation decide where it goes."""
        return len(self._all) > 1

    def start(self) -> None:
        """Begin to probe: several all the time, a single one while it is not known to answer."""
        self._watching = asyncio.create_task(self._watch(), name="upstreams")

    async def close(self) -> None:
        """Stop probing, and close every connection."""
        for task in (self._watching, self._refreshing, self._checking):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        for upstream in (*self._all, *self._leaving):
            await upstream.close()

    def reload(self, addresses: Iterable[UpstreamAddress]) -> None:
        """Take a new list. One that left gets no more requests, and finishes its streams."""
        known = {upstream.address: upstream for upstream in self._all}
        wanted = tuple(addresses)
        self._all = [
            known.pop(each) if each in known else Upstream(self._settings, each, self._transport) for each in wanted
        ]
        self._leaving += known.values()
        self._by_model.clear()
        self._models_at = 0.0
        self._has_asked = False
        logger.info("upstreams: %s", ", ".join(upstream.name for upstream in self._all))

    async def pick(self, model: str | None, key: bytes) -> Upstream:
        """The upstream for a model and a conversation. Raises UnknownModelError, UpstreamError."""
        if len(self._all) == 1 and self._all[0].address.model is None:
            return self._all[0]
        if not self._has_asked and model is not None:
            await self._refresh_models()  # else the first requests would go to any of them
        candidates = self._serving(model)
        if not candidates and model is not None:
            await self._look_for(model)
            candidates = self._serving(model)
        if not candidates:
            if model is None or any(upstream.models is None for upstream in self._all):
                raise UpstreamError("No upstream can be reached.", status=502, code="upstream_unreachable")
            raise UnknownModelError(model)
        return choose([each for each in candidates if each.health.is_in] or candidates, key)

    async def open(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: Body,
        *,
        model: str | None = None,
        key: bytes | None = None,
    ) -> OpenedResponse:
        """The response, as soon as its head is there. Requests with the same `key` go to the same upstream.

        A request that no engine has worked on (refused connection, 502, 503, 504) goes once to another upstream. Raises
        APIError: nothing of an answer has come.
        """
        key = key or secrets.token_bytes(8)
        upstream = await self.pick(model, key)
        try:
            opened = await _open(upstream, method, target, headers, body)
        except UpstreamError as exc:
            other = self._other(upstream, model, key, body) if exc.is_unsent else None
            if other is None:
                raise
            logger.warning("%s: %s; asking %s", upstream.name, exc, other.name)
            return await _open(other, method, target, headers, body)
        if opened.response.status not in _NOT_WORKED_ON:
            return opened
        other = self._other(upstream, model, key, body)
        if other is None:
            return opened
        logger.warning("%s answered %d; asking %s", upstream.name, opened.response.status, other.name)
        upstream.health.failed(f"answered {opened.response.status}")
        try:
            second = await _open(other, method, target, headers, body)
        except UpstreamError:
            return opened  # the first one's answer says more
        except BaseException:  # the caller left
            opened.close()
            raise
        opened.close()
        return second

    async def check(self) -> str:
        """ "ok" where a request would find an upstream, else why not, without addresses; at most a second old.

        However many ask at once, each upstream is probed once.
        """
        if self._checking is None or (self._checking.done() and time.monotonic() - self._checked_at >= _CHECK_SECONDS):
            self._checking = asyncio.create_task(self._check(), name="ready")
        return await asyncio.shield(self._checking)

    async def _check(self) -> str:
        if not self.are_several or not all(upstream.health.is_known for upstream in self._all):
            await asyncio.gather(*(upstream.probe() for upstream in self._all))
        self._checked_at = time.monotonic()
        if any(upstream.health.is_in and upstream.health.reason is None for upstream in self._all):
            return "ok"
        reasons = dict.fromkeys(str(upstream.health.reason) for upstream in self._all)
        return "; ".join(reasons)

    async def list_models(self) -> list[dict[str, Any]]:
        """The models of all upstreams, each once, as the first one that serves it describes it."""
        await self._refresh_models()
        models: dict[str, dict[str, Any]] = {}
        for upstream in self._all:
            for model in upstream.described or upstream.models or ():
                models.setdefault(model, upstream.described.get(model, {"id": model, "object": "model"}))
        return list(models.values())

    def _serving(self, model: str | None) -> list[Upstream]:
        if model is None:
            return self._all
        named = self._by_model.get(model)
        if named is None:
            named = [upstream for upstream in self._all if upstream.models is not None and model in upstream.models]
            if named:
                self._by_model[model] = named
        # One whose list has never been read may serve anything.
        return named or [upstream for upstream in self._all if upstream.models is None and upstream.health.is_in]

    def _other(self, upstream: Upstream, model: str | None, key: bytes, body: Body) -> Upstream | None:
        """Where a request may go that its upstream has not worked on. A body that is read as it comes is gone."""
        if not isinstance(body, bytes):
            return None
        others = [each for each in self._serving(model) if each is not upstream and each.health.is_in]
        return choose(others, key) if others else None

    async def _look_for(self, model: str) -> None:
        """Ask for the model lists again: a model may have been loaded just now."""
        if time.monotonic() - self._models_at < _UNKNOWN_MODEL_SECONDS:
            return
        logger.debug("no upstream is known to serve %.100r: asking them", model)
        await self._refresh_models()

    async def _refresh_models(self) -> None:
        """Read all model lists, one reading at a time for all who wait."""
        if self._refreshing is None or self._refreshing.done():
            self._models_at = time.monotonic()
            self._refreshing = asyncio.create_task(self._read_models(), name="models")
        await asyncio.shield(self._refreshing)

    async def _read_models(self) -> None:
        asked = self._all
        await asyncio.gather(*(upstream.read_models() for upstream in asked))
        self._by_model.clear()
        self._has_asked = asked is self._all

    async def _watch(self) -> None:
        while True:
            try:
                await self._probe_all()
            except Exception:  # it must live: without it an upstream that is back would never be used again
                logger.exception("the upstreams could not be probed")
            await asyncio.sleep(PROBE_SECONDS)

    async def _probe_all(self) -> None:
        asked = [each for each in self._all if self.are_several or not (each.health.is_known and each.health.is_in)]
        await asyncio.gather(*(upstream.probe() for upstream in asked))
        if self.are_several and time.monotonic() - self._models_at >= _MODELS_SECONDS:
            await self._refresh_models()
        await self._close_left()

    async def _close_left(self) -> None:
        for upstream in [each for each in self._leaving if each.open_count == 0]:
            self._leaving.remove(upstream)
            await upstream.close()


async def _open(upstream: Upstream, method: bytes, target: bytes, headers: Headers, body: Body) -> OpenedResponse:
    upstream.open_count += 1
    upstream.request_count += 1
    try:
        response = await upstream.open(method, target, headers, body)
    except BaseException as exc:
        upstream.open_count -= 1
        if isinstance(exc, UpstreamError):
            exc.upstream = upstream.name
            upstream.error_count += 1
            upstream.health.failed(str(exc))
        raise
    upstream.error_count += response.status in _NOT_WORKED_ON
    return OpenedResponse(response, upstream)
