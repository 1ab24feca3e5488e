"""Charges a request's tokens to its key: reserves an estimate before the request, settles the real usage after it."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from proxy.access.quotas import DayTokens
from proxy.upstream.client import Response
from proxy.wire import headers
from proxy.wire.headers import Headers
from proxy.wire.token_meter import TokenMeter

# Reserved for a request without max_tokens, until the key has used more for one request.
_UNLIMITED_TOKENS = 16_384
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")  # of chat (old and new name) and of Responses
_CHOICES_MAX = 128  # OpenAI's maximum for `n`


class Charge:
    """The charge of one request whose key has a token quota."""

    def __init__(self, tokens: DayTokens, *, per_day: int, processes: float) -> None:
        self._tokens = tokens
        self._per_day = per_day
        self._processes = processes
        self._held = 0
        self._meter: TokenMeter | None = None

    def reserve(self, *, request_bytes: int, request: Mapping[str, Any] | None = None) -> None:
        """Reserves the tokens that the request may use, once. `request` is its JSON, if known. Raises APIError 429."""
        if self._meter is not None:
            return
        meter = TokenMeter(request_bytes=request_bytes)
        held = meter.request_tokens + (_limit_of(request or {}) or max(_UNLIMITED_TOKENS, self._tokens.largest))
        self._tokens.reserve(held, per_day=self._per_day, unix_time=time.time(), processes=self._processes)
        self._held, self._meter = held, meter

    def metered(self, response: Response) -> Response:
        """Wraps the response to count its tokens while it is read."""
        if self._meter is None:
            return response
        media_type = headers.value_of(response.headers, b"content-type") or b""
        self._meter.begin(response.status, is_stream=b"event-stream" in media_type.lower())
        return _Metered(response, self._meter)

    def settle(self) -> None:
        """Charges the tokens used and releases the reservation. Called at the end of the request."""
        if self._meter is not None:
            self._tokens.settle(self._meter.total, reserved=self._held)
            self._meter = None


class _Metered:
    """A response whose tokens are counted while it is read."""

    def __init__(self, response: Response, meter: TokenMeter) -> None:
        self._response = response
        self._meter = meter
        self.status: int = response.status
        self.headers: Headers = response.headers
        self.sent_at = response.sent_at

    @property
    def is_over(self) -> bool:
        return self._response.is_over

    async def read(self) -> bytes:
        data = await self._response.read()
        self._note(data)
        return data

    def read_whole_nowait(self) -> bytes | None:
        data = self._response.read_whole_nowait()
        if data is not None:
            self._meter.feed(data)
            self._meter.end()
        return data

    async def pump(self, sink: Callable[[bytes], bool]) -> bool:
        def counted(data: bytes) -> bool:
            self._meter.feed(data)
            return sink(data)

        has_ended = await self._response.pump(counted)
        if has_ended:
            self._meter.end()
        return has_ended

    def close(self) -> None:
        self._response.close()

    def _note(self, data: bytes) -> None:
        if data:
            self._meter.feed(data)
        else:
            self._meter.end()


def _limit_of(request: Mapping[str, Any]) -> int | None:
    """The maximum reply length that the request allows."""
    limits = [request[name] for name in _LIMITS if isinstance(request.get(name), int) and request[name] >= 0]
    choices = request.get("n")
    count = min(choices, _CHOICES_MAX) if isinstance(choices, int) and choices > 0 else 1
    return max(limits) * count if limits else None
