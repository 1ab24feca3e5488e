"""Receives every ended chat and request of one worker: counts, logs and traces it; and measures the queues.

Observation is optional: its errors are logged at a limited rate and never affect a chat.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from starlette.types import Scope

from proxy.errors import UnavailableError
from proxy.recording.overflow import UNSAVED_REASONS
from proxy.recording.recorder import Recorder
from proxy.recording.spill import spill_files
from proxy.settings import Settings
from proxy.storage.exchange import Exchange, Outcome
from proxy.telemetry.access_log import AccessLog
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.request_lines import RequestLines
from proxy.telemetry.traces import open_traces
from proxy.telemetry.upstream_counts import UpstreamCounts
from proxy.telemetry.worker_files import folder_of
from proxy.upstream.upstreams import Upstreams
from proxy.wire.endpoint import Tokens

logger = logging.getLogger(__name__)

# Chats only add to counters and lists; this often a thread writes the lists, and the queues are measured.
_PUBLISH_SECONDS = 1.0
# After a chat, its counts are written within this time, with those of others; a killed worker loses no more of them.
_WRITE_SECONDS = 0.1
_COMPLAINT_SECONDS = 60.0  # an error that every chat repeats must not fill the log


class Observer:
    """Called by the recorder for every chat that has ended, and by the middleware for every other request."""

    def __init__(self, settings: Settings, recorder: Recorder, upstreams: Upstreams | None = None) -> None:
        self._database = settings.database_path
        self._state_folder = settings.state_path
        self._recorder = recorder
        self._upstreams = None if upstreams is None else UpstreamCounts(upstreams)
        self._log = AccessLog(sample=settings.access_log_sample)
        self._complained_at = -_COMPLAINT_SECONDS
        # A thread of its own: it may block on the disk, and must not occupy a thread that chats need.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="observer")
        self.metrics = self._open_metrics(folder_of(settings.database_path, workers=settings.workers))
        self._traces = open_traces(settings)
        self._console = None if settings.quiet else RequestLines()
        self._task: asyncio.Task[None] | None = None
        self._is_write_due = False

    def start(self) -> None:
        """Starts measuring."""
        self._recorder.observe = self.chat_ended
        self._guarded(self._publish)
        self._task = asyncio.create_task(self._run(), name="observer")

    async def close(self) -> None:
        """Measures a last time. Chats that end later, such as those cut by a shutdown, are stored but not counted."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._recorder.observe = None
        self._guarded(self._publish)
        await self._in_thread(lambda: self._log.write())
        if self._traces is not None:
            try:
                await self._traces.close()
            except Exception as exc:  # noqa: BLE001 - must not prevent the shutdown
                self._log_failure(exc)
        if self._console is not None:
            self._console.close()
        metrics, self.metrics = self.metrics, None
        if metrics is not None:
            metrics.close()
        self._thread.shutdown(wait=False)

    def chat_ended(self, exchange: Exchange, outcome: Outcome) -> None:
        """Counts, logs and traces a chat. Never raises, because the chat must not be affected."""
        self._guarded(lambda: self._note_chat(exchange, outcome))

    def request_ended(self, scope: Scope, *, status: int, seconds: float) -> None:
        """Counts and logs any other request. Never raises."""
        self._guarded(lambda: self._count_request(status))
        console = self._console
        if console is not None and (status >= 500 or status == 0):
            self._guarded(lambda: console.request_failed(scope["method"], scope["path"], status))
        self._guarded(lambda: self._log.add_request(scope, status=status, seconds=seconds))

    async def text(self) -> bytes:
        """The Prometheus text. Raises UnavailableError if metrics could not be opened."""
        self._guarded(self._publish)
        metrics = self.metrics
        if metrics is None:
            raise UnavailableError
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: metrics.text(gauges=[self._sizes()])
        )

    def _open_metrics(self, folder: Path) -> Metrics | None:
        try:
            return Metrics(folder)
        except Exception as exc:  # noqa: BLE001 - chats work without metrics
            logger.error("nothing is counted: %s cannot be used: %s", folder, exc)
            return None

    def _guarded(self, work: Callable[[], object]) -> None:
        """Runs `work`; logs any exception, because observation must not affect a chat."""
        try:
            work()
        except Exception as exc:  # noqa: BLE001 - see above
            self._log_failure(exc)

    async def _in_thread(self, work: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)

    def _log_failure(self, exc: Exception) -> None:
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAINT_SECONDS:
            self._complained_at = now
            logger.error("an observer failed to count or log something", exc_info=exc)

    def _note_chat(self, exchange: Exchange, outcome: Outcome) -> None:
        """Each part has a guard of its own: if one fails, the others still get the chat."""
        model = _model_of(exchange, outcome)
        served = model if _is_success(outcome.http_status) else None
        self._guarded(lambda: self._count_chat(outcome, served))
        console = self._console
        if console is not None:
            self._guarded(lambda: console.chat_ended(exchange, outcome, served))
        self._guarded(lambda: self._log.add_chat(exchange, outcome, model))
        traces = self._traces
        if traces is not None:
            self._guarded(lambda: traces.note(exchange, outcome))

    def _count_chat(self, outcome: Outcome, served_model: str | None) -> None:
        metrics, reply = self.metrics, outcome.reply
        if metrics is None:
            return
        self._write_counts_soon()
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
        tokens = reply.tokens if reply is not None else Tokens()
        metrics.add_tokens(served_model, prompt=_count(tokens.prompt), completion=_count(tokens.completion))

    def _count_request(self, status: int) -> None:
        if self.metrics is not None:
            self.metrics.add("stellarchat_requests", f"{status // 100}xx" if 100 <= status < 600 else "none")
            self.metrics.write()

    def _write_counts_soon(self) -> None:
        if not self._is_write_due:
            self._is_write_due = True
            asyncio.get_running_loop().call_later(_WRITE_SECONDS, self._guarded, self._write_counts)

    def _write_counts(self) -> None:
        self._is_write_due = False
        if self.metrics is not None:
            self.metrics.write()

    def _sizes(self) -> GaugeMetricFamily:
        sizes = GaugeMetricFamily("stellarchat_database_bytes", "Size on disk.", labels=["file"])
        for label, suffix in (("database", ""), ("log", "-wal"), ("search", "-search")):
            sizes.add_metric([label], _size(self._database.with_name(self._database.name + suffix)))
        spills = spill_files(self._database, folder=self._state_folder).values()
        sizes.add_metric(["spill"], sum(map(_size, spills)))
        return sizes

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_PUBLISH_SECONDS)
            self._guarded(self._publish)
            await self._in_thread(lambda: self._log.write())
            if self._traces is not None:
                await self._in_thread(self._traces.make_spans)

    def _publish(self) -> None:
        metrics, recorder, writer = self.metrics, self._recorder, self._recorder.writer
        if metrics is None:
            return
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
        if self._upstreams is not None:
            self._upstreams.publish(metrics)
        metrics.write()


def _model_of(exchange: Exchange, outcome: Outcome) -> str | None:
    """The model that answered, else the one in the request."""
    reply = outcome.reply
    model = None if reply is None else reply.model
    if not isinstance(model, str):
        model = exchange.request.get("model")
    return model if isinstance(model, str) else None


def _is_success(http_status: int | None) -> bool:
    """Whether upstream has answered. Only then is its model a label: callers' invalid names must not become labels."""
    return http_status is not None and 200 <= http_status < 300


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**53 else 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
