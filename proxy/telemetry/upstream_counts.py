"""Transfers the upstreams' counters to the metrics."""

from proxy.telemetry.metrics import Metrics
from proxy.upstream.upstreams import Upstreams


class UpstreamCounts:
    """The counters of one worker's upstreams."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams
        self._named: set[str] = set()

    def publish(self, metrics: Metrics) -> None:
        """Adds what was counted since the last call."""
        left, self._named = self._named, {each.name for each in self._upstreams.all}
        for each in self._upstreams.all:
            requests, errors = each.request_count, each.error_count
            each.request_count = each.error_count = 0
            metrics.add_upstream(
                each.name, requests=requests, errors=errors, open_=each.open_count, is_up=each.health.is_in
            )
        for name in left - self._named:  # removed from the settings
            metrics.add_upstream(name, requests=0, errors=0, open_=0, is_up=False)
