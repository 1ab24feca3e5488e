"""OpenTelemetry tracing: one span per chat, if an endpoint is configured and the packages are installed.

Names and attributes follow the GenAI semantic conventions for client spans, since the proxy is upstream's client:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans. They never contain content, keys or users. When a chat
ends, only its data is queued; once a second the spans are created and passed to OpenTelemetry's own bounded queue and
thread. Everything else is configured by OpenTelemetry's variables (headers, sampling, `OTEL_SERVICE_NAME`).
"""

import asyncio
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from proxy.settings import Settings
from proxy.storage.exchange import Exchange, Outcome
from proxy.wire.endpoint import Tokens
from proxy.wire.surrogates import encodable

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

Attributes = dict[str, str | bool | int | float | list[str]]

_NOTED_MAX = 2048  # per second; the size of OpenTelemetry's queue
# The history is closed after the traces: a receiver that does not answer must not use up the time for that.
_SHUTDOWN_SECONDS = 2.0
_TEXT_LENGTH = 256  # names come from callers
_LARGEST_INTEGER = 2**63 - 1  # OTLP's integers are signed 64-bit (protobuf int64)

_INTEGERS = (
    ("gen_ai.request.max_tokens", "max_tokens"),
    ("gen_ai.request.max_tokens", "max_completion_tokens"),
    ("gen_ai.request.seed", "seed"),
)
_NUMBERS = (
    ("gen_ai.request.temperature", "temperature"),
    ("gen_ai.request.top_p", "top_p"),
    ("gen_ai.request.top_k", "top_k"),
    ("gen_ai.request.frequency_penalty", "frequency_penalty"),
    ("gen_ai.request.presence_penalty", "presence_penalty"),
)


@dataclass(frozen=True, slots=True)
class _Noted:
    """The data of an ended chat's span. Times are Unix nanoseconds."""

    name: str
    attributes: Attributes
    parent: dict[str, str]
    error_type: str | None
    started_ns: int
    ended_ns: int


class Traces:
    """The spans of one process."""

    def __init__(self, settings: Settings, exporter: "SpanExporter") -> None:
        """Raises ImportError."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = _provider(exporter)
        self._tracer = self._provider.get_tracer("stellarchat")
        self._propagator = TraceContextTextMapPropagator()
        self._server = _server_attributes(settings)
        self._noted: deque[_Noted] = deque()
        self._dropped = self._reported = 0

    def note(self, exchange: Exchange, outcome: Outcome) -> None:
        """Queues the data of an ended chat's span. Only reads attributes, so it is cheap."""
        if len(self._noted) >= _NOTED_MAX:
            self._dropped += 1
            return
        ended_ns = time.time_ns()
        model = _text(exchange.request.get("model"))
        self._noted.append(
            _Noted(
                name=f"chat {model}" if model else "chat",
                attributes={**self._server, **_request_attributes(exchange), **_reply_attributes(outcome)},
                parent=exchange.trace_context or {},
                error_type=_error_type(outcome),
                started_ns=ended_ns - (outcome.duration_ms or 0) * 1_000_000,
                ended_ns=ended_ns,
            )
        )

    def make_spans(self) -> None:
        """Creates the queued spans and passes them to OpenTelemetry. Never blocks."""
        while (noted := self._next()) is not None:
            self._make_span(noted)
        dropped = self._dropped
        if dropped > self._reported:
            logger.warning("%d chats have no span: there were too many in a second", dropped - self._reported)
            self._reported = dropped

    async def close(self) -> None:
        """Sends the remaining spans if the receiver accepts them in time."""
        self.make_spans()
        # A daemon thread, so that a receiver that never answers does not keep the process alive.
        sending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, _SHUTDOWN_SECONDS)
        if sending.is_alive():
            logger.warning("the last spans could not be sent in time")

    def _next(self) -> _Noted | None:
        try:
            return self._noted.popleft()
        except IndexError:  # two threads may call this during shutdown
            return None

    def _make_span(self, noted: _Noted) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, Status, StatusCode

        span = self._tracer.start_span(
            noted.name,
            context=self._propagator.extract(noted.parent, context=Context()),
            kind=SpanKind.CLIENT,
            attributes=noted.attributes,
            start_time=noted.started_ns,
        )
        if noted.error_type is not None:
            span.set_attribute("error.type", noted.error_type)
            span.set_status(Status(StatusCode.ERROR))
        span.end(noted.ended_ns)


def open_traces(settings: Settings) -> Traces | None:
    """The process's traces; None if not configured, or if OpenTelemetry is not installed (then logs a warning)."""
    endpoint = settings.traces_endpoint
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return Traces(settings, OTLPSpanExporter(endpoint=endpoint))
    except ImportError:
        logger.warning("there are no traces: OpenTelemetry is not installed (pip install 'stellarchat[otel]')")
        return None


def _provider(exporter: "SpanExporter") -> "TracerProvider":
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Resource attributes set by the operator take precedence.
    named = Resource({"service.name": "stellarchat"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=Resource.create(named.attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _server_attributes(settings: Settings) -> Attributes:
    parts = urlsplit(settings.upstream_url)
    return {
        "gen_ai.operation.name": "chat",
        # The conventions define no name for vLLM; server.address shows which server it is.
        "gen_ai.provider.name": "vllm",
        "server.address": parts.hostname or "",
        "server.port": parts.port or {"https": 443}.get(parts.scheme, 80),
    }


def _request_attributes(exchange: Exchange) -> Attributes:
    request = exchange.request
    attributes: Attributes = {"gen_ai.conversation.id": exchange.session.session_id}
    if model := _text(request.get("model")):
        attributes["gen_ai.request.model"] = model
    if request.get("stream") is True:
        attributes["gen_ai.request.stream"] = True
    for name, key in _INTEGERS:
        if (number := _integer(request.get(key))) is not None:
            attributes[name] = number
    for name, key in _NUMBERS:
        value = request.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_INTEGER:
            attributes[name] = float(value)
    choices = _integer(request.get("n"))
    if choices is not None and choices != 1:
        attributes["gen_ai.request.choice.count"] = choices
    return attributes


def _reply_attributes(outcome: Outcome) -> Attributes:
    attributes: Attributes = {}
    # The first chunk that contains a token: the one before only contains the role.
    if outcome.time_to_first_token_ms is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = outcome.time_to_first_token_ms / 1000
    reply = outcome.reply
    if reply is None:
        return attributes
    texts = {"gen_ai.response.id": _text(reply.id), "gen_ai.response.model": _text(reply.model)}
    attributes |= {name: text for name, text in texts.items() if text}
    if reasons := [_text(reason) for reason in reply.finish_reasons]:
        attributes["gen_ai.response.finish_reasons"] = reasons
    return attributes | _usage_attributes(reply.tokens)


def _usage_attributes(tokens: Tokens) -> Attributes:
    counts = {
        "gen_ai.usage.input_tokens": tokens.prompt,
        "gen_ai.usage.output_tokens": tokens.completion,
        "gen_ai.usage.cache_read.input_tokens": tokens.cached,
        "gen_ai.usage.reasoning.output_tokens": tokens.reasoning,
    }
    return {name: number for name, count in counts.items() if (number := _integer(count)) is not None}


def _error_type(outcome: Outcome) -> str | None:
    """Upstream's status if it is the error, else one of our own codes: upstream's codes could be any text."""
    if outcome.status == "completed":
        return None
    if outcome.http_status is not None and outcome.http_status >= 400:
        return str(outcome.http_status)
    if outcome.http_status is None and isinstance(outcome.error, dict):
        code = outcome.error.get("code")  # upstream did not answer, so the error is ours
        return code if isinstance(code, str) else outcome.cause
    return outcome.cause


def _integer(value: Any) -> int | None:
    is_integer = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_INTEGER
    return value if is_integer else None


def _text(value: Any) -> str:
    """Text that protobuf accepts, truncated."""
    return encodable(value[:_TEXT_LENGTH]) if isinstance(value, str) else ""
