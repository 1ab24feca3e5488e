"""One upstream: opens requests, probes health, reads models. Uses our own connection pool, or an httpx transport."""

import logging
import math
import re
import ssl
import time
from base64 import b64encode
from typing import Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import httpx

from proxy.errors import UpstreamError
from proxy.setting_values import UpstreamAddress
from proxy.settings import Settings
from proxy.upstream.choice import multiplier_of
from proxy.upstream.failure import Failure, failure
from proxy.upstream.health import Health
from proxy.upstream.httpx_client import HTTPXClient
from proxy.upstream.pool import ConnectionPool, Limits, Origin, system_tls
from proxy.upstream.request import Body, Timeouts
from proxy.upstream.response import Sink
from proxy.wire import json_text
from proxy.wire.headers import Headers

logger = logging.getLogger(__name__)

# Only in these responses Location refers to a resource of upstream (RFC 9110 §10.2.2).
_WITH_LOCATION = frozenset({201, *range(300, 400)})
_LOCATIONS = frozenset({b"location", b"content-location"})
_ABSOLUTE = re.compile(rb"(?:https?:)?//([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)

_PROBE_TIMEOUTS = Timeouts(*[5.0] * 5)
# Both limit the memory that one upstream's model list can take; gateways list some hundreds.
_MODELS_MAX = 10_000
_MODEL_LIST_BYTES = 16 * 2**20


class Response(Protocol):
    """A response whose head has arrived."""

    status: int
    headers: Headers
    sent_at: float | None  # monotonic time; None if the transport does not report it

    @property
    def is_over(self) -> bool:
        """Whether the end of the body is already known."""

    async def read(self) -> bytes:
        """The next piece of the body; b"" at its end. Raises Failure."""

    def read_whole_nowait(self) -> bytes | None:
        """Returns the whole body if it has been received and not read, else None."""

    async def pump(self, sink: Sink) -> bool:
        """Passes each piece of the body to `sink` as it arrives. True at the end of the body, False if the sink
        stopped.

        Raises Failure, and whatever the sink raises.
        """

    def close(self) -> None:
        """Closes the response; if the body is incomplete, this closes the connection."""


class Upstream:
    """An inference server, or a router in front of several: its connections, health, and models."""

    def __init__(
        self, settings: Settings, address: UpstreamAddress, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        parts = urlsplit(address.url)
        assert parts.hostname is not None
        self.address = address
        self.host = parts.netloc.rpartition("@")[2].encode()
        self.name = f"{parts.scheme}://{self.host.decode()}{parts.path.rstrip('/')}"
        self.multiplier = multiplier_of(self.name)
        self.open_count = 0
        self.request_count = self.error_count = 0  # since the last metrics collection
        self.health = Health()
        self.models: frozenset[str] | None = None if address.model is None else frozenset({address.model})
        self.refused_list = ""  # why the last request for the model list failed
        self.described: dict[str, dict[str, Any]] = {}  # model id to upstream's own description
        self._own_hosts = _own_hosts(parts)
        self._logged_at = -math.inf
        self._prefix = parts.path.rstrip("/").removesuffix("/v1").encode()
        self._authorization = _authorization_of(settings, parts)
        self._replaces_authorization = parts.username is not None
        self._timeouts = Timeouts(
            connect_s=settings.connect_timeout_seconds,
            write_s=settings.write_timeout_seconds,
            head_s=settings.response_timeout_seconds,
            read_s=settings.read_timeout_seconds,
            pool_s=settings.connect_timeout_seconds,
        )
        if transport is None and settings.transport == "httpx":
            transport = httpx.AsyncHTTPTransport(
                limits=httpx.Limits(max_connections=settings.upstream_connections, keepalive_expiry=4.0)
            )
        self._client: ConnectionPool | HTTPXClient
        # separate, so that chats never wait for a connection used by a probe
        self._probes: ConnectionPool | HTTPXClient
        if transport is None:
            is_tls = parts.scheme == "https"
            tls: ssl.SSLContext | None = system_tls() if is_tls else None
            origin = Origin(parts.hostname, parts.port or (443 if is_tls else 80), tls)
            limits = Limits(max_connections=settings.upstream_connections, max_waiting=settings.upstream_connections)
            self._client = ConnectionPool(origin=origin, limits=limits, timeouts=self._timeouts)
            self._probes = ConnectionPool(origin=origin, limits=Limits(max_connections=2, max_waiting=2))
        else:
            self._client = self._probes = HTTPXClient(transport, f"{parts.scheme}://{parts.netloc}")

    async def open(self, method: bytes, target: bytes, headers: Headers, body: Body) -> Response:
        """Sends a request; returns the response when its head has arrived.

        `target` is the path and query as sent by the caller; `headers` do not contain `Host`. Raises UpstreamError; no
        part of a response has been received then.
        """
        sent = [(b"host", self.host), *headers]
        if self._replaces_authorization:
            sent = [header for header in sent if header[0] != b"authorization"]
            sent += self._authorization
        try:
            response = await self._client.request(method, self._prefix + target, sent, body, timeouts=self._timeouts)
        except Failure as exc:
            error = failure(exc)
            self._log_failure(error, exc)
            raise error from exc
        if response.status in _WITH_LOCATION:
            response.headers = [
                (name, self._seen_by_caller(value) if name in _LOCATIONS else value) for name, value in response.headers
            ]
        return response

    def _seen_by_caller(self, location: bytes) -> bytes:
        """Rewrites a redirect to this upstream to a relative one: callers may not be able to reach its address."""
        match = _ABSOLUTE.fullmatch(location)
        if match is None or match[1].lower() not in self._own_hosts:
            return location
        path = match[2] if match[2].startswith(b"/") else b"/" + match[2]
        return path.removeprefix(self._prefix) or b"/"

    def _log_failure(self, error: UpstreamError, exc: Failure) -> None:
        """Logs the reason for the operator, at most once a second."""
        now = time.monotonic()
        if now - self._logged_at >= 1.0:
            self._logged_at = now
            logger.warning("%s: %s (%s)", self.name, error.message, exc)

    async def probe(self) -> bool:
        """Asks upstream's health endpoint, updates `health`, and returns whether it is ready."""
        self.health.watch_silence(now=time.monotonic(), open_count=self.open_count, received=self._received)
        try:
            response = await self._ask(b"/health")
        except Failure as exc:
            self.health.failed(str(failure(exc)))
            return False
        response.close()
        if response.status == httpx.codes.OK:
            self.health.answered()
            return True
        self.health.failed(f"/health answered {response.status}")
        return False

    async def read_models(self) -> None:
        """Reads the model list. Keeps the previous one if upstream does not answer."""
        if self.address.model is not None:
            return
        try:
            response = await self._ask(b"/v1/models")
            listed = await _read_json(response)
        except (Failure, ValueError) as exc:
            logger.debug("%s: no model list: %s", self.name, exc)
            self.refused_list = str(exc)
            return
        entries = listed.get("data") if isinstance(listed, dict) else None
        if isinstance(entries, list):
            described = {each["id"]: each for each in entries[:_MODELS_MAX] if _is_model(each)}
            self.described, self.models = described, frozenset(described)

    @property
    def _received(self) -> int:
        return self._client.received if isinstance(self._client, ConnectionPool) else 0

    async def _ask(self, path: bytes) -> Response:
        headers = [(b"host", self.host), (b"accept-encoding", b"identity"), *self._authorization]
        return await self._probes.request(b"GET", self._prefix + path, headers, b"", timeouts=_PROBE_TIMEOUTS)

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.aclose()
        await self._probes.aclose()


def _authorization_of(settings: Settings, parts: SplitResult) -> Headers:
    """The configured API key, or the user and password of the address (RFC 7617)."""
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return [(b"authorization", b"Basic " + b64encode(credentials.encode()))]
    key = settings.upstream_api_key
    return [(b"authorization", b"Bearer " + key.encode())] if key else []


def _own_hosts(parts: SplitResult) -> frozenset[bytes]:
    """The host values this upstream may use in redirects: with and without the default port."""
    netloc = parts.netloc.rpartition("@")[2].lower()
    usual = "443" if parts.scheme == "https" else "80"
    bare = netloc.removesuffix(f":{usual}")
    is_usual = parts.port in (None, int(usual))
    return frozenset(name.encode() for name in ({netloc, bare, f"{bare}:{usual}"} if is_usual else {netloc}))


async def _read_json(response: Response) -> Any:
    """Raises Failure; ValueError if it is not JSON or too long."""
    body = bytearray()
    try:
        while piece := await response.read():
            body += piece
            if len(body) > _MODEL_LIST_BYTES:
                raise ValueError("the answer is too long")
    finally:
        response.close()
    if response.status != httpx.codes.OK:
        raise ValueError(f"status {response.status}")
    return json_text.loads(bytes(body))


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), str)
