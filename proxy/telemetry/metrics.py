"""What Prometheus asks for: prometheus-client's multiprocess mode, with a bounded number of series.

Every counter and histogram is made at the start, so that all are there from the first scrape and nothing has to grow
later; only a new model's counts are not. A worker counts into its own mapped files, which outlive it, and a scrape sums
all of them. No user, session or path is a label, and models are so many.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
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

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
MODELS_MAX = 64
UPSTREAMS_MAX = 32
OTHER_MODELS = "other"

_MODEL_LENGTH = 120
_MODELS_FILE = "models"
_UPSTREAM_LENGTH = 200

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
    _Family("stellarchat_requests", "All other requests by the class of their status.", "code", CODES),
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
    _Family("stellarchat_spilled_writes", "Writes on the spill files."),
    _Family("stellarchat_database_trouble", "Workers that cannot write the database."),
    _Family("stellarchat_workers", "Living workers."),
)
GREATEST = (
    _Family(
        "stellarchat_write_queue_age_seconds", "How long the oldest queued write has waited; of all workers the most."
    ),
)
HISTOGRAMS = (
    _Family("stellarchat_time_to_first_token_seconds", "From the request to the first token of a stream."),
    _Family("stellarchat_chat_duration_seconds", "From the request to the end of the reply."),
    _Family("stellarchat_upstream_latency_seconds", "From the request to upstream's status."),
    _Family("stellarchat_proxy_overhead_seconds", "From upstream's status to the head of the reply to the caller."),
)
_UPSTREAM_COUNTERS = (
    ("stellarchat_upstream_requests", "Requests sent to an upstream."),
    ("stellarchat_upstream_errors", "Of these, those without an answer or with 502, 503, 504."),
)
_UPSTREAM_GAUGES = (
    ("stellarchat_upstream_open_requests", "Requests an upstream works on now."),
    ("stellarchat_upstream_up", "Workers in which an upstream takes new requests."),
)
_TOKENS = ("stellarchat_tokens", "Tokens of recorded chats by model; of models beyond the limit as `other`.")
_LABELS = ("model", "kind")


class Metrics:
    """One worker's numbers. `add` and `observe` cost an addition in memory. Raises OSError where none can be kept."""

    def __init__(self, folder: Path) -> None:
        self._place = Place(folder)
        self._files: list[MmapedDict] = []
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def add(self, name: str, value: str = "", *, amount: float = 1) -> None:
        """Count."""
        self._cells[name, value].add(amount)

    def set(self, name: str, amount: float, *, value: str = "") -> None:
        """What it is now; or how many this worker has counted so far, where somebody else counts."""
        self._cells[name, value].set(self._base[name, value] + amount)

    def observe(self, name: str, seconds: float) -> None:
        """Count a duration into its histogram."""
        buckets, total = self._histograms[name]
        buckets[bisect_left(BUCKETS, seconds)].add(1)
        total.add(seconds)

    def add_tokens(self, model: str | None, *, prompt: int, completion: int) -> None:
        """Count a reply's tokens. `model` is one that upstream serves, None for one that it does not."""
        cells = self._tokens_of(_label(model))
        cells[0].add(prompt)
        cells[1].add(completion)

    def add_upstream(self, name: str, *, requests: int, errors: int, open_: int, is_up: bool) -> None:
        """Count an upstream's requests and errors, and set what it works on now."""
        if name not in self._upstreams and len(self._upstreams) >= UPSTREAMS_MAX:
            return
        cells = self._upstreams.get(name)
        if cells is None:
            label = {"upstream": name[:_UPSTREAM_LENGTH]}
            counters = [_Cell(self._counters, name_, "_total", label, help_) for name_, help_ in _UPSTREAM_COUNTERS]
            gauges = [_Cell(self._gauges, name_, "", label, help_) for name_, help_ in _UPSTREAM_GAUGES]
            cells = self._upstreams[name] = [*counters, *gauges]
        cells[0].add(requests)
        cells[1].add(errors)
        cells[2].set(open_)
        cells[3].set(is_up)

    def text(self, *, gauges: Iterable[GaugeMetricFamily] = ()) -> bytes:
        """All workers' numbers in Prometheus' text format, and some more gauges."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_All(self._place.folder, list(gauges)))
        return generate_latest(registry)

    def close(self) -> None:
        """Leave the place to another worker: the counts stay as long as the server, the gauges do not."""
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
        # What somebody else counts begins at zero with each worker; the place may have had one before.
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
        """Whether a model is, or becomes, one of those that are told apart in all workers."""
        if len(self._tokens) >= MODELS_MAX:
            return False
        try:
            with worker_files.shared_lines(self._place.folder / _MODELS_FILE) as known:
                if model not in known and len(known) < MODELS_MAX - 1:
                    known.append(model)
                return model in known
        except OSError:  # another worker is at it, or the disk is full: it is counted as another this once
            return False


class _Cell:
    """A number in a worker's file."""

    __slots__ = ("_file", "_key", "value")

    def __init__(self, file: MmapedDict, name: str, suffix: str, labels: dict[str, str], help_: str) -> None:
        self._file = file
        self._key = mmap_key(name, name + suffix, list(labels), list(labels.values()), help_)
        self.value: float = file.read_value(self._key)[0]

    def add(self, amount: float) -> None:
        self.value += amount
        self._file.write_value(self._key, self.value, 0.0)

    def set(self, value: float) -> None:
        self.value = value
        self._file.write_value(self._key, value, 0.0)


class _All(Collector):
    """All workers' sums."""

    def __init__(self, folder: Path, gauges: list[GaugeMetricFamily]) -> None:
        self._folder = folder
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        """The sums as they are now."""
        return [*MultiProcessCollector.merge(worker_files.files_of(self._folder)), *self._gauges]


def _pairs(family: _Family, value: str) -> dict[str, str]:
    return {family.label: value} if family.label else {}


def _histogram(file: MmapedDict, family: _Family) -> tuple[list[_Cell], _Cell]:
    bounds = [*map(floatToGoString, BUCKETS), "+Inf"]
    buckets = [_Cell(file, family.name, "_bucket", {"le": bound}, family.help) for bound in bounds]
    return buckets, _Cell(file, family.name, "_sum", {}, family.help)


def _label(model: str | None) -> str:
    """A model's name as a label: one line, no longer than a name is, and UTF-8."""
    if model is None:
        return OTHER_MODELS
    return " ".join(model[:_MODEL_LENGTH].encode("utf-8", "replace").decode().split()) or OTHER_MODELS
