"""The Prometheus metrics: prometheus-client's multiprocess mode with a bounded number of series.

All series except those of new models are created at the start, so that the first scrape shows them all and the files
never need to grow. Each worker counts in its own memory-mapped files, which outlive it; a scrape adds them up. Users,
sessions and paths are never labels, and the number of models is limited.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy.recording.overflow import UNSAVED_REASONS
from proxy.telemetry import worker_files
from proxy.telemetry.worker_files import Place
from proxy.wire.surrogates import encodable

# https://prometheus.io/docs/instrumenting/exposition_formats/
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Prometheus' usual classes, continued to 600 s, the default of the upstream timeouts.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# Each model has its own series in every worker, so their number is limited.
MODELS_MAX = 64
UPSTREAMS_MAX = 32
OTHER_MODELS = "other"

# All series must fit into files whose space is allocated at the start (`worker_files`). Model names come from callers:
# they once filled hand-written counters, and chats with a new model were not stored until the restart.
_MODEL_LENGTH = 120
_MODELS_FILE = "models"
_UPSTREAM_LENGTH = 200

STATUSES = ("completed", "incomplete", "failed")
CAUSES = ("caller_left", "stopped", "upstream", "ended_early")
CODES = ("1xx", "2xx", "3xx", "4xx", "5xx", "none")
KINDS = ("prompt", "completion")


@dataclass(frozen=True, slots=True)
class _Family:
    """A metric, and the values of its label, if it has one."""

    name: str
    help: str
    label: str = ""
    values: tuple[str, ...] = ("",)


COUNTERS = (
    _Family("stellarchat_chats", "Recorded chats by how they ended.", "status", STATUSES),
    _Family("stellarchat_chats_cut", "Chats cut before the end of their reply, by cause.", "cause", CAUSES),
    _Family("stellarchat_requests", "All other requests by the class of their status.", "code", CODES),
    _Family("stellarchat_database_commits", "Transactions of the writer."),
    _Family("stellarchat_database_commit_seconds", "Seconds spent in transactions of the writer."),
    _Family(
        "stellarchat_unsaved",
        "Writes that were lost, or not on disk when the end of their reply was sent.",
        "reason",
        UNSAVED_REASONS,
    ),
)
GAUGES = (
    _Family("stellarchat_chats_in_flight", "Chats streaming now."),
    _Family("stellarchat_write_queue_length", "Writes waiting for the database, the spilled ones included."),
    _Family("stellarchat_write_queue_bytes", "Size of the writes queued in memory."),
    _Family("stellarchat_spilled_writes", "Writes in the spill files."),
    _Family("stellarchat_database_trouble", "Workers that cannot write the database."),
    _Family("stellarchat_workers", "Living workers."),
)
# A gauge that is added up over the workers would say nothing here: the worst worker counts.
GREATEST = (
    _Family("stellarchat_write_queue_age_seconds", "Age of the oldest queued write; the maximum of all workers."),
)
HISTOGRAMS = (
    _Family("stellarchat_time_to_first_token_seconds", "From the request to the first token of a stream."),
    _Family("stellarchat_chat_duration_seconds", "From the request to the end of the reply."),
    _Family("stellarchat_upstream_latency_seconds", "From the request to upstream's status."),
    _Family("stellarchat_proxy_overhead_seconds", "From upstream's status to the head of the reply to the caller."),
)
_UPSTREAM_COUNTERS = (
    ("stellarchat_upstream_requests", "Requests sent to an upstream."),
    ("stellarchat_upstream_errors", "Requests to an upstream without an answer, or answered with 502, 503 or 504."),
)
_UPSTREAM_GAUGES = (
    ("stellarchat_upstream_open_requests", "Requests in progress at an upstream."),
    ("stellarchat_upstream_up", "Workers in which an upstream takes new requests."),
)
_TOKENS = ("stellarchat_tokens", "Tokens of recorded chats by model; of models beyond the limit as `other`.")
_LABELS = ("model", "kind")


class Metrics:
    """One worker's metrics. `add`, `observe` and `add_tokens` count in memory until `write`, because chats wait for
    them. Raises OSError if no file can be used."""

    def __init__(self, folder: Path) -> None:
        self._place = Place(folder)
        self._files: list[MmapedDict] = []
        self._changed: set[_Cell] = set()  # counted, but not in the file yet
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def add(self, name: str, value: str = "", *, amount: float = 1) -> None:
        """Increases a counter."""
        self._add(self._cells[name, value], amount)

    def write(self) -> None:
        """Writes what was counted to this worker's files, for the next scrape."""
        for cell in self._changed:
            cell.write()
        self._changed.clear()

    def _add(self, cell: "_Cell", amount: float) -> None:
        cell.value += amount
        self._changed.add(cell)

    def set(self, name: str, amount: float, *, value: str = "") -> None:
        """Sets a gauge, or a counter that is counted elsewhere in this worker."""
        self._cells[name, value].set(self._base[name, value] + amount)

    def observe(self, name: str, seconds: float) -> None:
        """Adds a duration to its histogram."""
        buckets, total = self._histograms[name]
        self._add(buckets[bisect_left(BUCKETS, seconds)], 1)
        self._add(total, seconds)

    def add_tokens(self, model: str | None, *, prompt: int, completion: int) -> None:
        """Adds a reply's tokens. `model` is None if upstream does not serve it."""
        cells = self._tokens_of(OTHER_MODELS if model is None else _label(model[:_MODEL_LENGTH]))
        self._add(cells[0], prompt)
        self._add(cells[1], completion)

    def add_upstream(self, name: str, *, requests: int, errors: int, open_: int, is_up: bool) -> None:
        """Adds an upstream's requests and errors, and sets its open requests and state."""
        if name not in self._upstreams and len(self._upstreams) >= UPSTREAMS_MAX:
            return
        cells = self._upstreams.get(name)
        if cells is None:
            label = {"upstream": name[:_UPSTREAM_LENGTH]}
            counters = [_Cell(self._counters, name_, "_total", label, help_) for name_, help_ in _UPSTREAM_COUNTERS]
            gauges = [_Cell(self._gauges, name_, "", label, help_) for name_, help_ in _UPSTREAM_GAUGES]
            cells = self._upstreams[name] = [*counters, *gauges]
        self._add(cells[0], requests)
        self._add(cells[1], errors)
        cells[2].set(open_)
        cells[3].set(is_up)

    def text(self, *, gauges: Iterable[GaugeMetricFamily] = ()) -> bytes:
        """The sum of all workers in Prometheus' text format, plus additional gauges."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_All(self._place.folder, list(gauges)))
        return generate_latest(registry)

    def close(self) -> None:
        """Leaves the files to another worker: counters stay until the server ends, gauges are removed."""
        self.write()
        for file in self._files:
            file.close()
        self._files.clear()
        self._place.release()

    def _open(self) -> None:
        counters, histograms = self._file("counter"), self._file("histogram")
        gauges, greatest = self._file("gauge_livesum"), self._file("gauge_livemax")
        self._cells = {
            (family.name, value): _Cell(file, family.name, suffix, _pairs(family, value), family.help)
            for file, suffix, families in (
                (counters, "_total", COUNTERS),
                (gauges, "", GAUGES),
                (greatest, "", GREATEST),
            )
            for family in families
            for value in family.values
        }
        self._histograms = {family.name: _histogram(histograms, family) for family in HISTOGRAMS}
        self._counters, self._gauges = counters, gauges
        self._upstreams: dict[str, list[_Cell]] = {}
        # Counters that are counted elsewhere start at zero in every worker, but the file may contain a predecessor's
        # values.
        levels = {family.name for family in (*GAUGES, *GREATEST)}
        self._base = {key: 0.0 if key[0] in levels else cell.value for key, cell in self._cells.items()}
        self._tokens: dict[str, tuple[_Cell, _Cell]] = {}
        self._tokens_of(OTHER_MODELS)

    def _file(self, kind: str) -> MmapedDict:
        self._files.append(self._place.file(kind))
        return self._files[-1]

    def _tokens_of(self, model: str) -> "tuple[_Cell, _Cell]":
        cells = self._tokens.get(model)
        if cells is None and (model == OTHER_MODELS or self._claim(model)):
            name, help_ = _TOKENS
            prompt, completion = (
                _Cell(self._counters, name, "_total", {"model": model, "kind": kind}, help_) for kind in KINDS
            )
            cells = self._tokens[model] = prompt, completion
        return cells or self._tokens[OTHER_MODELS]

    def _claim(self, model: str) -> bool:
        """Whether the model has its own series, or gets one now; the limit applies to all workers together."""
        if len(self._tokens) >= MODELS_MAX:
            return False
        try:
            with worker_files.shared_lines(self._place.folder / _MODELS_FILE) as known:
                if model not in known and len(known) < MODELS_MAX - 1:
                    known.append(model)
                return model in known
        except OSError:  # another worker holds the lock, or the disk is full: counted as `other` this time
            return False


class _Cell:
    """A number in a worker's file."""

    __slots__ = ("_file", "_key", "value")

    def __init__(self, file: MmapedDict, name: str, suffix: str, labels: dict[str, str], help_: str) -> None:
        self._file = file
        self._key = mmap_key(name, name + suffix, list(labels), list(labels.values()), help_)
        self.value: float = file.read_value(self._key)[0]

    def set(self, value: float) -> None:
        self.value = value
        self.write()

    def write(self) -> None:
        self._file.write_value(self._key, self.value, 0.0)


class _All(Collector):
    """Collects the sums of all workers."""

    def __init__(self, folder: Path, gauges: list[GaugeMetricFamily]) -> None:
        self._folder = folder
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        """The current sums."""
        return [*MultiProcessCollector.merge(worker_files.files_of(self._folder)), *self._gauges]


def _pairs(family: _Family, value: str) -> dict[str, str]:
    return {family.label: value} if family.label else {}


def _histogram(file: MmapedDict, family: _Family) -> tuple[list[_Cell], _Cell]:
    bounds = [*map(floatToGoString, BUCKETS), "+Inf"]
    buckets = [_Cell(file, family.name, "_bucket", {"le": bound}, family.help) for bound in bounds]
    return buckets, _Cell(file, family.name, "_sum", {}, family.help)


@lru_cache(maxsize=MODELS_MAX)
def _label(model: str) -> str:
    """A model name as a label: one line, valid UTF-8."""
    return " ".join(encodable(model).split()) or OTHER_MODELS
