"""What Prometheus asks for: counted in each worker's own file of numbers, summed over all workers at the scrape.

A worker counts into a memory map, at the cost of an addition: nothing is lost when it dies, since its file stays until
the server ends. What it measures of itself now (queues, chats in flight) it puts there every second, and that counts
only while the worker lives, which the lock of its file says. No user or session is a label, and models are so many.
"""

import contextlib
import fcntl
import mmap
import os
import shutil
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from proxy.recording.overflow import UNSAVED_REASONS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
MODELS_MAX = 64
OTHER_MODELS = "other"

_MODEL_LENGTH = 120
_NAMES_BYTES = 16 * 1024  # the models' names, before the numbers

STATUSES = ("completed", "incomplete", "failed")
CAUSES = ("caller_left", "stopped", "upstream", "ended_early")
CODES = ("1xx", "2xx", "3xx", "4xx", "5xx", "none")
KINDS = ("prompt", "completion")


@dataclass(frozen=True, slots=True)
class _Family:
    """A metric and the values of its one label, if it has one."""

    name: str
    help: str
    label: str = ""
    values: tuple[str, ...] = ("",)


COUNTERS = (
    _Family("stellarchat_chats", "Recorded chats by how they ended.", "status", STATUSES),
    _Family("stellarchat_chats_cut", "Chats that ended before their reply, by cause.", "cause", CAUSES),
    _Family("stellarchat_requests", "Other requests by the class of their status.", "code", CODES),
    _Family("stellarchat_database_commits", "Transactions of the writer."),
    _Family("stellarchat_database_commit_seconds", "Time spent in them."),
    _Family(
        "stellarchat_unsaved",
        "Writes that the database has not taken, or that were not on disk when their reply ended.",
        "reason",
        UNSAVED_REASONS,
    ),
)
GAUGES = (
    _Family("stellarchat_chats_in_flight", "Chats streaming now."),
    _Family("stellarchat_write_queue_length", "Writes waiting for the database, the spilled ones included."),
    _Family("stellarchat_write_queue_bytes", "Size of what is queued in memory."),
    _Family(
        "stellarchat_write_queue_age_seconds", "How long the oldest queued write has waited; of all workers the most."
    ),
    _Family("stellarchat_spilled_writes", "Writes on the spill files."),
    _Family("stellarchat_database_trouble", "Workers that cannot write the database."),
    _Family("stellarchat_workers", "Living workers."),
)
HISTOGRAMS = (
    _Family("stellarchat_time_to_first_token_seconds", "From the request to the first token of a stream."),
    _Family("stellarchat_chat_duration_seconds", "From the request to the end of the reply."),
    _Family("stellarchat_upstream_latency_seconds", "From the request to upstream's status."),
    _Family("stellarchat_proxy_overhead_seconds", "From upstream's status to the head of the reply to the caller."),
)
_AGE = "stellarchat_write_queue_age_seconds"


def _layout() -> tuple[dict[tuple[str, str], int], int]:
    places: dict[tuple[str, str], int] = {}
    for family in (*COUNTERS, *GAUGES):
        for value in family.values:
            places[family.name, value] = len(places)
    end = len(places)
    for family in HISTOGRAMS:
        places[family.name, ""] = end
        end += len(BUCKETS) + 2  # one more bucket for all above, and the sum
    return places, end


PLACES, _TOKENS = _layout()
_NUMBERS = _TOKENS + len(KINDS) * MODELS_MAX
_FILE_BYTES = _NAMES_BYTES + 8 * _NUMBERS


class Metrics:
    """One worker's numbers. `add` and `observe` cost an addition in memory."""

    def __init__(self, folder: Path, worker_id: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._file = os.open(folder / worker_id, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        os.ftruncate(self._file, _FILE_BYTES)
        self._map = mmap.mmap(self._file, _FILE_BYTES)
        self._numbers = memoryview(self._map)[_NAMES_BYTES:].cast("d")
        self._models: dict[str, int] = {}

    def add(self, name: str, value: str = "", *, amount: float = 1) -> None:
        """Count."""
        self._numbers[PLACES[name, value]] += amount

    def set(self, name: str, amount: float, *, value: str = "") -> None:
        """What it is now; or how many there are so far, where somebody else counts."""
        self._numbers[PLACES[name, value]] = amount

    def observe(self, name: str, seconds: float) -> None:
        """Count a duration into its histogram."""
        start = PLACES[name, ""]
        self._numbers[start + bisect_left(BUCKETS, seconds)] += 1
        self._numbers[start + len(BUCKETS) + 1] += seconds

    def add_tokens(self, model: str | None, *, prompt: int, completion: int) -> None:
        """Count a reply's tokens. Only so many models are told apart: callers make names up."""
        place = _TOKENS + len(KINDS) * self._model_place((model or OTHER_MODELS)[:_MODEL_LENGTH])
        self._numbers[place] += prompt
        self._numbers[place + 1] += completion

    def text(self, *, gauges: Iterable[GaugeMetricFamily] = ()) -> bytes:
        """All workers' numbers in Prometheus' text format, and some more gauges."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Sums(self._folder, list(gauges)))
        return generate_latest(registry)

    def close(self) -> None:
        """Give up the lock: the counts stay as long as the server, the gauges do not."""
        self._numbers.release()
        self._map.close()  # it has a copy of the file's descriptor, and so of its lock
        os.close(self._file)

    def _model_place(self, model: str) -> int:
        place = self._models.get(model)
        if place is None:
            if len(self._models) >= MODELS_MAX - 1:
                model = OTHER_MODELS  # the last place is kept for it
            place = self._models.setdefault(model, len(self._models))
            names = orjson.dumps([name.encode("utf-8", "replace").decode() for name in self._models])
            self._map[: len(names) + 1] = names + b"\n"
        return place


def folder_of(database: Path, *, workers: int) -> Path:
    """Where the workers of one server count: named by the process that starts them."""
    server = os.getpid() if workers == 1 else os.getppid()
    return _parent(database) / str(server)


def clear(database: Path) -> None:
    """Forget what servers that are gone have counted, and one that had this process's id."""
    for folder in _parent(database).glob("*"):
        if folder.name == str(os.getpid()) or not Path("/proc", folder.name).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _parent(database: Path) -> Path:
    return database.with_name(database.name + "-metrics")


# --- summing


class _Sums(Collector):
    def __init__(self, folder: Path, gauges: list[GaugeMetricFamily]) -> None:
        self._folder = folder
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        """The sums as they are now."""
        totals = [0.0] * _TOKENS
        tokens: dict[str, list[float]] = {}
        for path in sorted(self._folder.iterdir()):
            with contextlib.suppress(OSError, ValueError):
                _add_file(path, totals, tokens)
        for family in COUNTERS:
            yield _family(CounterMetricFamily, family, totals)
        for family in GAUGES:
            yield _family(GaugeMetricFamily, family, totals)
        for family in HISTOGRAMS:
            yield _histogram(family, totals)
        yield _tokens(tokens)
        yield from self._gauges


def _add_file(path: Path, totals: list[float], tokens: dict[str, list[float]]) -> None:
    with path.open("rb") as file:
        data = file.read()
        is_alive = not _can_lock(file.fileno())
    if len(data) != _FILE_BYTES:
        return
    numbers = memoryview(data)[_NAMES_BYTES:].cast("d")
    living = {PLACES[family.name, ""] for family in GAUGES}
    age = PLACES[_AGE, ""]
    for place in range(_TOKENS):
        if place == age:
            totals[place] = max(totals[place], numbers[place] if is_alive else 0)
        elif is_alive or place not in living:
            totals[place] += numbers[place]
    names = data[:_NAMES_BYTES].split(b"\n", 1)[0]
    for position, model in enumerate(orjson.loads(names) if names.startswith(b"[") else ()):
        counts = tokens.setdefault(model, [0.0] * len(KINDS))
        for kind in range(len(KINDS)):
            counts[kind] += numbers[_TOKENS + len(KINDS) * position + kind]


def _can_lock(file: int) -> bool:
    """Whether its worker is gone."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _family(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily], family: _Family, totals: list[float]
) -> CounterMetricFamily | GaugeMetricFamily:
    labels = [family.label] if family.label else []
    metric = kind(family.name, family.help, labels=labels)
    for value in family.values:
        metric.add_metric([value] if labels else [], totals[PLACES[family.name, value]])
    return metric


def _histogram(family: _Family, totals: list[float]) -> HistogramMetricFamily:
    start = PLACES[family.name, ""]
    buckets, count = [], 0.0
    for position, bound in enumerate([*map(str, BUCKETS), "+Inf"]):
        count += totals[start + position]
        buckets.append((bound, count))
    metric = HistogramMetricFamily(family.name, family.help)
    metric.add_metric([], buckets, sum_value=totals[start + len(BUCKETS) + 1])
    return metric


def _tokens(tokens: dict[str, list[float]]) -> CounterMetricFamily:
    """By model; beyond the limit all workers' models together are told apart as one."""
    metric = CounterMetricFamily("stellarchat_tokens", "Tokens of recorded chats.", labels=["model", "kind"])
    kept = sorted(tokens, key=lambda model: -sum(tokens[model]))[: MODELS_MAX - 1]
    rest = [0.0] * len(KINDS)
    for model in tokens:
        if model not in kept:
            rest = [a + b for a, b in zip(rest, tokens[model], strict=True)]
    if any(rest):
        known = tokens.get(OTHER_MODELS, [0.0] * len(KINDS)) if OTHER_MODELS in kept else [0.0] * len(KINDS)
        tokens = {**tokens, OTHER_MODELS: [a + b for a, b in zip(rest, known, strict=True)]}
        kept = [model for model in kept if model != OTHER_MODELS] + [OTHER_MODELS]
    for model in kept:
        for kind, count in zip(KINDS, tokens[model], strict=True):
            metric.add_metric([model, kind], count)
    return metric
