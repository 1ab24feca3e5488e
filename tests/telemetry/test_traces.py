"""Traces: a span a chat after the GenAI conventions, without content, and nothing at all where nobody asks for them."""

import asyncio
import importlib.util
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.settings import Settings, load
from proxy.storage.exchange import Exchange, Outcome
from proxy.telemetry import traces
from proxy.telemetry.traces import Traces, open_traces
from proxy.wire.headers import trace_context_of
from tests.fake_upstream import fake_upstream, whole_json
from tests.serving import REPOSITORY, running_proxy, settings_for
from tests.stored import choice, exchange, outcome, user

needs_opentelemetry = pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry") is None, reason="the extra otel is not installed"
)
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01", f"00-{TRACE_ID}-{SPAN_ID}-00"
SETTINGS = Settings(upstream_url="https://vllm.example/v1")


async def spans_of(*chats: tuple[Exchange, Outcome]) -> list[Any]:
    """The spans that OpenTelemetry exports of these."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    made = Traces(SETTINGS, exporter)
    for chat in chats:
        made.note(*chat)
    await made.close()
    return list(exporter.get_finished_spans())


@needs_opentelemetry
async def test_a_chat_is_a_span_with_the_attributes_of_the_conventions() -> None:
    from opentelemetry.trace import SpanKind, StatusCode

    asked = exchange(
        [user("hi")], stream=True, temperature=1, top_p=0.5, max_tokens=9, seed=-3, n=2, stop=["secret"], user="ann"
    )
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    replied = outcome(choice("a", index=1, finish_reason="length"), choice("b"), usage=usage, model="m-1", id="c-1")
    (span,) = await spans_of((asked, replied))
    assert (span.name, span.kind, span.parent) == ("chat m", SpanKind.CLIENT, None)
    assert span.status.status_code is StatusCode.UNSET
    assert span.end_time - span.start_time == 12_000_000
    assert span.resource.attributes["service.name"] == "stellarchat"
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "server.address": "vllm.example",
        "server.port": 443,
        "gen_ai.conversation.id": asked.session.session_id,
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.seed": -3,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.top_p": 0.5,
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.id": "c-1",
        "gen_ai.response.model": "m-1",
        "gen_ai.response.finish_reasons": ("stop", "length"),
        "gen_ai.response.time_to_first_chunk": 0.003,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 2,
    }


@needs_opentelemetry
@pytest.mark.parametrize(
    ("ended", "error_type"),
    (
        (Outcome(status="failed", http_status=429, error={"message": "secret", "code": 429}), "429"),
        (Outcome(status="failed", error={"type": "upstream_error", "code": "upstream_timeout"}), "upstream_timeout"),
        (Outcome(status="failed", http_status=200, error={"type": ["odd"], "code": "secret"}), "upstream"),
        (Outcome(status="incomplete", http_status=200, error={"type": "caller_disconnected"}), "caller_left"),
        (Outcome(status="incomplete", http_status=200), "ended_early"),
    ),
)
async def test_a_chat_that_failed_or_was_cut_is_a_span_with_an_error(ended: Outcome, error_type: str) -> None:
    from opentelemetry.trace import StatusCode

    (span,) = await spans_of((exchange([user("hi")]), ended))
    assert span.attributes["error.type"] == error_type
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert span.events == ()


@needs_opentelemetry
async def test_the_callers_trace_goes_on_and_its_sampling_holds() -> None:
    asked = [exchange([user("hi")]) for _ in range(5)]
    given: tuple[list[tuple[bytes, bytes]], ...] = (
        [(b"traceparent", SAMPLED.encode()), (b"tracestate", b"a=b"), (b"tracestate", b"c=d")],
        [(b"traceparent", NOT_SAMPLED.encode())],
        [(b"traceparent", b"no such thing \xff"), (b"tracestate", b"a=b")],
        [(b"traceparent", SAMPLED.encode()), (b"tracestate", b"a=b,,=, \xff=1, x,a=c," + b"y=z," * 40)],
        [(b"tracestate", b"a=b")],
    )
    for each, headers in zip(asked, given, strict=True):
        each.trace_context = trace_context_of(headers)
    first, malformed, odd, without = await spans_of(*((each, outcome(choice("yes"))) for each in asked))
    assert format(first.context.trace_id, "032x") == TRACE_ID
    assert format(first.parent.span_id, "016x") == SPAN_ID
    assert dict(first.context.trace_state) == {"a": "b", "c": "d"}
    assert (malformed.parent, without.parent) == (None, None)
    assert format(odd.parent.span_id, "016x") == SPAN_ID


@needs_opentelemetry
async def test_a_flood_is_bounded_and_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(traces, "_NOTED_MAX", 2)
    chat = exchange([user("hi")]), outcome(choice("yes"))
    assert len(await spans_of(chat, chat, chat, chat)) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "2 chats have no span: there were too many in a second"
    ]


@needs_opentelemetry
async def test_a_receiver_that_never_answers_does_not_keep_the_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    released = threading.Event()

    class Stuck(InMemorySpanExporter):
        def export(self, spans: Any) -> Any:
            released.wait(60)
            return super().export(spans)

    monkeypatch.setattr(traces, "_SHUTDOWN_SECONDS", 0.05)
    made = Traces(SETTINGS, Stuck())
    made.note(exchange([user("hi")]), outcome(choice("yes")))
    try:
        async with asyncio.timeout(30):
            await made.close()
        assert "the last spans could not be sent in time" in caplog.text
    finally:
        released.set()


@contextmanager
def receiver() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An OTLP receiver's address, and the paths and bodies it was sent."""
    got: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@needs_opentelemetry
async def test_spans_reach_the_receiver_without_content_and_traceparent_reaches_upstream_unchanged(
    tmp_path: Path,
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    sent = {"traceparent": SAMPLED, "tracestate": "a=b", "Authorization": "Bearer sk-secret", "X-User-Id": "secret-ann"}
    body = {"model": "m", "messages": [{"role": "user", "content": "secret words"}], "user": "secret-ann"}
    odd = {**body, "model": "\ud800 odd", "seed": 10**30, "temperature": True, "max_tokens": -(10**30), "top_p": 1e300}
    with receiver() as (address, got):
        async with fake_upstream() as upstream:
            settings = settings_for(tmp_path, upstream_url=upstream.url, otlp_endpoint=address)
            async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, headers=sent) as client:
                for each in (body, {**body, "stream": True}, odd):
                    (await client.post("/v1/chat/completions", content=json.dumps(each))).raise_for_status()
                upstream.on("/v1/chat/completions", whole_json({"error": {"message": "secret"}}, status=400))
                assert (await client.post("/v1/chat/completions", json=body)).status_code == 400
                (await client.post("/v1/chat/completions", json={**body, "store": False}))
            for call in upstream.calls:
                assert (call.headers["traceparent"], call.headers["tracestate"]) == (SAMPLED, "a=b")
    assert {path for path, _ in got} == {"/v1/traces"}
    assert b"secret" not in b"".join(content for _, content in got)
    spans = [
        span
        for _, content in got
        for resource in ExportTraceServiceRequest.FromString(content).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert [span.name for span in spans] == ["chat m", "chat m", "chat ? odd", "chat m"]
    assert {(span.trace_id.hex(), span.parent_span_id.hex()) for span in spans} == {(TRACE_ID, SPAN_ID)}
    assert all(span.kind == span.SPAN_KIND_CLIENT for span in spans)
    assert "gen_ai.response.time_to_first_chunk" in {each.key for each in spans[1].attributes}
    assert spans[3].status.code == spans[3].status.STATUS_CODE_ERROR


def test_without_the_packages_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("opentelemetry", *(name for name in sys.modules if name.startswith("opentelemetry."))):
        monkeypatch.setitem(sys.modules, name, None)
    caplog.set_level(logging.INFO)
    assert open_traces(Settings()) is None
    assert caplog.records == []
    assert open_traces(Settings(otlp_endpoint="http://127.0.0.1:4318")) is None
    assert len(caplog.records) == 1
    assert "stellarchat[otel]" in caplog.text


def test_without_an_endpoint_nothing_is_imported(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from proxy.app import create_app
from tests.serving import running_proxy, settings_for
from pathlib import Path
async def main():
    async with running_proxy(settings_for(Path(sys.argv[1]))):
        assert not any(name.startswith("opentelemetry") for name in sys.modules)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, check=True, timeout=60)


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    (
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318"}, "http://a:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318/x/"}, "http://a:4318/x/v1/traces"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b/t"},
            "http://b/t",
        ),
    ),
)
def test_the_endpoint_is_that_of_opentelemetrys_variables(environ: dict[str, str], endpoint: str | None) -> None:
    assert load(environ=environ, env_file=None).traces_endpoint == endpoint
