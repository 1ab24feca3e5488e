"""Watches one worker: counts how its chats and requests end, logs and traces each, and measures its queues."""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.ids import timestamp
from proxy.recording.overflow import UNSAVED_REASONS
from proxy.recording.recorder import Recorder
from proxy.settings import Settings
from proxy.storage.exchange import Exchange, Outcome
from proxy.telemetry.logs import file_of_requests
from proxy.telemetry.metrics import Metrics, folder_of
from proxy.telemetry.traces import open_traces
from proxy.wire import headers

_PUBLISH_SECONDS = 1.0
_LOGGER = "stellarchat.access"
_LINES_MAX = 100_000  # a second's; what is more is not logged
_CHAT = "/v1/chat/completions"


class Observer:
    """Told by the recorder of every chat that has ended."""

    def __init__(self, settings: Settings, recorder: Recorder) -> None:
        self._database = settings.database_path
        self._recorder = recorder
        self._sample = settings.access_log_sample
        self._log = file_of_requests()
        self._lines: list[dict[str, Any]] = []
        self.metrics = Metrics(folder_of(settings.database_path, workers=settings.workers), recorder.worker_id)
        self._traces = open_traces(settings)
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Begin to measure."""
        self._recorder.observe = self.chat_ended
        self._publish()
        self._task = asyncio.create_task(self._run(), name="observer")

    async def close(self) -> None:
        """Measure a last time. A chat that ends later, as one that a shutdown cuts may, is saved and not counted."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._publish()
        self._write_lines()
        if self._traces is not None:
            await self._traces.close()
        self._recorder.observe = None
        self._is_closed = True
        self.metrics.close()

    def chat_ended(self, exchange: Exchange, outcome: Outcome) -> None:
        """Count a chat, log it and trace it."""
        metrics, reply = self.metrics, outcome.reply
        metrics.add("stellarchat_chats", outcome.status)
        if outcome.status == "incomplete":
            metrics.add("stellarchat_chats_cut", outcome.cause)
        if outcome.time_to_first_token_ms is not None:
            metrics.observe("stellarchat_time_to_first_token_seconds", outcome.time_to_first_token_ms / 1000)
        if outcome.duration_ms is not None:
            metrics.observe("stellarchat_chat_duration_seconds", outcome.duration_ms / 1000)
        if outcome.upstream_latency_seconds is not None:
            metrics.observe("stellarchat_upstream_latency_seconds", outcome.upstream_latency_seconds)
        if outcome.overhead_seconds is not None:
            metrics.observe("stellarchat_proxy_overhead_seconds", outcome.overhead_seconds)
        usage = reply.usage if reply is not None and isinstance(reply.usage, dict) else {}
        model = reply.model if reply is not None and isinstance(reply.model, str) else exchange.request.get("model")
        metrics.add_tokens(
            model if isinstance(model, str) else None,
            prompt=_count(usage.get("prompt_tokens")),
            completion=_count(usage.get("completion_tokens")),
        )
        if self._is_logged(failed=outcome.status == "failed"):
            self._log_chat(exchange, outcome, model)
        if self._traces is not None:
            self._traces.note(exchange, outcome)

    def request_ended(self, scope: Scope, *, status: int, seconds: float) -> None:
        """Count any other request, and log it."""
        if self._is_closed:
            return
        code = f"{status // 100}xx" if 100 <= status < 600 else "none"
        self.metrics.add("stellarchat_requests", code)
        if self._is_logged(failed=status >= 500 or status == 0):
            fields = {"method": scope["method"], "path": scope["path"], "status": status}
            request_id = headers.value_of(scope["headers"], b"x-request-id")
            fields["request_id"] = None if request_id is None else headers.text_of(request_id)
            self._log_line("request", {**fields, "duration_ms": round(seconds * 1000)})

    def text(self) -> bytes:
        """What Prometheus gets."""
        self._publish()
        sizes = GaugeMetricFamily("stellarchat_database_bytes", "Size on disk.", labels=["file"])
        for label, suffix in (("database", ""), ("log", "-wal"), ("search", "-search")):
            sizes.add_metric([label], _size(self._database.with_name(self._database.name + suffix)))
        spill = sum(_size(path) for path in self._database.parent.glob(f"{self._database.name}-spill-*"))
        sizes.add_metric(["spill"], spill)
        return self.metrics.text(gauges=[sizes])

    def _is_logged(self, *, failed: bool) -> bool:
        return self._log is not None and (
            failed or self._sample >= 1 or random.random() < self._sample  # noqa: S311 - a sample
        )

    def _log_line(self, message: str, fields: dict[str, Any]) -> None:
        """Keep a line for the next second's batch."""
        if len(self._lines) < _LINES_MAX:
            self._lines.append({"time": timestamp(), "level": "info", "logger": _LOGGER, "message": message, **fields})

    def _log_chat(self, exchange: Exchange, outcome: Outcome, model: Any) -> None:
        self._log_line(
            "chat",
            {
                "request_id": exchange.request_id,
                "session_id": exchange.session.session_id,
                "user_id": exchange.user_id,
                "model": model if isinstance(model, str) else None,
                "status": outcome.status,
                "http_status": outcome.http_status,
                "time_to_first_token_ms": outcome.time_to_first_token_ms,
                "duration_ms": outcome.duration_ms,
            },
        )

    def _write_lines(self) -> None:
        lines, self._lines = self._lines, []
        if lines and self._log is not None:
            self._log.write_lines(map(_loggable, lines))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_PUBLISH_SECONDS)
            self._publish()
            await asyncio.to_thread(self._write_lines)
            if self._traces is not None:
                await asyncio.to_thread(self._traces.make_spans)

    def _publish(self) -> None:
        metrics, recorder, writer = self.metrics, self._recorder, self._recorder.writer
        metrics.set("stellarchat_database_commits", writer.commits)
        metrics.set("stellarchat_database_commit_seconds", writer.commit_seconds)
        for reason in UNSAVED_REASONS:
            metrics.set("stellarchat_unsaved", writer.unsaved[reason], value=reason)
        metrics.set("stellarchat_chats_in_flight", recorder.live_count)
        metrics.set("stellarchat_write_queue_length", writer.waiting)
        metrics.set("stellarchat_write_queue_bytes", writer.queued_bytes)
        metrics.set("stellarchat_write_queue_age_seconds", writer.oldest_seconds)
        metrics.set("stellarchat_spilled_writes", writer.spilled)
        metrics.set("stellarchat_database_trouble", writer.last_error is not None)
        metrics.set("stellarchat_workers", 1)


class ObserverMiddleware:
    """Counts and logs every request but chats, which the recorder tells of: nothing stands in the way of a token."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, and note how. Never what is in it: not even the query of its path."""
        if scope["type"] != "http" or scope["path"] == _CHAT:
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            observer: Observer = scope["state"]["observer"]
            observer.request_ended(scope, status=status, seconds=time.monotonic() - started)


def _loggable(line: dict[str, Any]) -> dict[str, Any]:
    """Texts of callers may hold what no JSON can."""
    return {
        key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for key, value in line.items()
    }


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**53 else 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
