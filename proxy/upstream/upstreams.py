"""All upstreams of the settings: chooses one per request, retries another one, watches health and models."""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import httpx

from proxy.errors import APIError, UpstreamError
from proxy.setting_values import UpstreamAddress
from proxy.settings import Settings
from proxy.upstream.choice import Ranking, choose
from proxy.upstream.client import Response, Upstream
from proxy.upstream.request import Body
from proxy.wire.headers import Headers

logger = logging.getLogger(__name__)

# Probes have connections of their own, so that no chat waits for a hanging /health.
PROBE_SECONDS = 5.0
# Interval between model list reads, also the minimum between reads caused by requests for an unknown model.
_MODELS_SECONDS = 30.0
# A request for a new model reads the lists again, but invented names must not keep the upstreams busy.
_UNKNOWN_MODEL_SECONDS = 1.0
# Any number of /ready requests cause one probe in this time: 60 against a hanging /health once gave a chat a 504.
_CHECK_SECONDS = 1.0
# How much of the list of models is included in the error for an unknown model.
_NAMES_SHOWN = 100
_NAME_SHOWN = 256  # characters; a caller's model name may have megabytes
# Status codes that mean the request was not processed, so another upstream may try it.
_NOT_WORKED_ON = frozenset({502, 503, 504})


class UnknownModelError(APIError):
    """404 in vLLM's words: no upstream serves the model."""

    def __init__(self, model: str, *, served: Iterable[str]) -> None:
        names = ", ".join(name[:_NAME_SHOWN] for name in islice(served, _NAMES_SHOWN))
        super().__init__(
            f"The model `{model[:_NAME_SHOWN]}` does not exist. Valid aliases: {names}.",
            status=404,
            type_="NotFoundError",
            param="model",
            code="404",
        )

    def as_json(self) -> dict[str, Any]:
        """Like vLLM, returns the code as a number."""
        return {"error": {**super().as_json()["error"], "code": 404}}

    def as_anthropic(self) -> dict[str, Any]:
        """vLLM's own format on `/v1/messages`."""
        return {"type": "error", "error": {"type": self.type, "message": self.message}}


@dataclass(slots=True)
class OpenedResponse:
    """A response whose head has arrived, and its upstream. Close it once."""

    response: Response
    upstream: Upstream

    def close(self) -> None:
        """Closes the response; if the body is incomplete, this closes the connection to upstream."""
        self.upstream.open_count -= 1
        self.response.close()


class Upstreams:
    """All upstreams of one process."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._transport = transport
        self._settings = settings
        self._all = [Upstream(settings, address, transport) for address in settings.upstreams]
        self._leaving: list[Upstream] = []  # removed from the settings; their streams may finish
        self._watching: asyncio.Task[None] | None = None
        self._by_model: dict[str, Ranking[Upstream]] = {}  # cache, valid until the model lists are read again
        self._any_model = Ranking(self._all)
        self._models_at = 0.0
        self._has_asked = False  # all upstreams were asked for their models
        self._refreshing: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[str] | None = None
        self._checked_at = 0.0

    @property
    def all(self) -> tuple[Upstream, ...]:
        """The upstreams in the order of the settings."""
        return tuple(self._all)

    @property
    def are_several(self) -> bool:
        """Whether requests are routed by model and conversation."""
        return len(self._all) > 1

    @property
    def _only(self) -> Upstream | None:
        """The only upstream, unless the settings restrict it to a model."""
        return self._all[0] if len(self._all) == 1 and self._all[0].address.model is None else None

    def start(self) -> None:
        """Starts probing: always if there are several upstreams, otherwise only while the single one does not
        answer."""
        self._watching = asyncio.create_task(self._watch(), name="upstreams")

    async def close(self) -> None:
        """Stops probing and closes all connections."""
        for task in (self._watching, self._refreshing, self._checking):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        for upstream in (*self._all, *self._leaving):
            await upstream.close()

    def reload(self, addresses: Iterable[UpstreamAddress]) -> None:
        """Replaces the list. A removed upstream gets no new requests, and its streams may finish."""
        known = {upstream.address: upstream for upstream in self._all}
        wanted = tuple(addresses)
        self._all = [
            known.pop(each) if each in known else Upstream(self._settings, each, self._transport) for each in wanted
        ]
        self._leaving += known.values()
        self._by_model.clear()
        self._any_model = Ranking(self._all)
        self._models_at = 0.0
        self._has_asked = False
        logger.info("upstreams: %s", ", ".join(upstream.name for upstream in self._all))

    async def pick(self, model: str | None, key: bytes) -> Upstream:
        """The upstream for a model and a conversation. Raises UnknownModelError, UpstreamError."""
        if self._only is not None:
            return self._only
        if not self._has_asked and model is not None:
            await self._refresh_models()  # otherwise the first requests would be routed without knowing the models
        serving = self._serving(model)
        if not serving and model is not None:
            await self._look_for(model)
            serving = self._serving(model)
        if not serving:
            if model is None or any(upstream.models is None for upstream in self._all):
                raise UpstreamError("No upstream can be reached.", status=502, code="upstream_unreachable")
            raise UnknownModelError(model, served=self._models())
        return choose(serving.order(key))

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
        """Sends a request; returns the response when its head has arrived. Requests with equal `key` use the same
        upstream.

        A request that was not processed (connection refused, 502, 503, 504) is sent once to another upstream. Raises
        APIError; no part of a response has been received then.
        """
        upstream = self._only
        if upstream is None:
            key = key or _some_key()
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
            return opened  # the first upstream's answer is more informative
        except BaseException:  # the caller disconnected
            opened.close()
            raise
        opened.close()
        return second

    async def check(self) -> str:
        """Returns "ok" if a request would find an upstream, else the reason, without addresses; at most a second old.

        Concurrent calls share one probe per upstream.
        """
        if self._checking is None or (self._checking.done() and time.monotonic() - self._checked_at >= _CHECK_SECONDS):
            self._checking = asyncio.create_task(self._check(), name="ready")
        return await asyncio.shield(self._checking)

    async def _check(self) -> str:
        if not self.are_several or not all(upstream.health.is_known for upstream in self._all):
            await asyncio.gather(*(upstream.probe() for upstream in self._all))
        self._checked_at = time.monotonic()
        if any(upstream.health.can_serve for upstream in self._all):
            return "ok"
        reasons = dict.fromkeys(str(upstream.health.reason) for upstream in self._all)
        return "; ".join(reasons)

    async def list_models(self) -> list[dict[str, Any]]:
        """The models of all upstreams without duplicates; the first upstream that serves a model describes it."""
        await self._refresh_models()
        return list(self._models().values())

    def _models(self) -> dict[str, dict[str, Any]]:
        """The models known so far, by name."""
        models: dict[str, dict[str, Any]] = {}
        for upstream in self._all:
            for model in upstream.described or upstream.models or ():
                models.setdefault(model, upstream.described.get(model, {"id": model, "object": "model"}))
        return models

    def _serving(self, model: str | None) -> Ranking[Upstream]:
        if model is None:
            return self._any_model
        known = self._by_model.get(model)
        if known is not None:
            return known
        named = [upstream for upstream in self._all if upstream.models is not None and model in upstream.models]
        if named:
            return self._by_model.setdefault(model, Ranking(named))
        # An upstream whose list was never read may serve any model.
        return Ranking([upstream for upstream in self._all if upstream.models is None and upstream.health.is_in])

    def _other(self, upstream: Upstream, model: str | None, key: bytes | None, body: Body) -> Upstream | None:
        """Another upstream for a request that was not processed; None if the body was a stream, which cannot be
        resent."""
        if not isinstance(body, bytes):
            return None
        order = self._serving(model).order(key or _some_key())
        others = [each for each in order if each is not upstream and each.health.is_in]
        return choose(others) if others else None

    async def _look_for(self, model: str) -> None:
        """Reads the model lists again, because the model may have been loaded recently."""
        if time.monotonic() - self._models_at < _UNKNOWN_MODEL_SECONDS:
            return
        logger.debug("no upstream is known to serve %.100r: asking them", model)
        await self._refresh_models()

    async def _refresh_models(self) -> None:
        """Reads all model lists; concurrent callers share one run."""
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
            except Exception:  # must survive: otherwise a recovered upstream would never be used again
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


def _some_key() -> bytes:
    return secrets.token_bytes(8)


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
