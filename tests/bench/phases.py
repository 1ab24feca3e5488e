"""What is measured of one relay in one round: a few loads one after the other, and what each cost."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager

from tests.bench import accounting, dialects, relays
from tests.bench.client import Load, Outcome
from tests.bench.figures import Measured, quantile

LEVELS = (1, 50, 200, 1000)
_MEGABYTE = 1e6
# Of a core. Processor time is counted in ticks of 10 ms: this is five of them in the time that `Plan` says.
_QUIET_SHARE = 0.02


class PhaseError(Exception):
    """The relay did not do what the load asked for: the phase has no figure."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How long each phase lasts."""

    hold_streams: int = 1000
    hold_tokens: int = 200
    hold_rate: int = 20
    chunk_streams: int = 200
    chunk_tokens: int = 200
    chunk_rate: int = 50
    first_token_s: float = 5.0
    json_s: float = 4.0
    levels: tuple[int, ...] = LEVELS
    only: tuple[str, ...] = ()
    """The phases, where they are not all."""
    grace_s: float = 40.0
    """How much longer than planned a phase may last before it is given up."""
    quiet_s: float = 2.5
    """How long a relay must do nothing to be at rest. StellarChat begins with what it put off two seconds later."""
    settle_s: float = 20.0
    """How long it is waited for to come to rest, before and after a load."""


QUICK = Plan(hold_tokens=80, chunk_tokens=100, first_token_s=2.0, json_s=1.5, grace_s=25.0)
# The slowest of them was measured to need 18 s for the 4 s of `chunk`.
PEERS = Plan(only=("json", "first_50", "chunk"), levels=(50,), grace_s=20.0)
QUICK_PEERS = dataclasses.replace(
    PEERS, chunk_tokens=QUICK.chunk_tokens, first_token_s=QUICK.first_token_s, json_s=QUICK.json_s
)


def names(plan: Plan) -> list[str]:
    """The phases, in order."""
    every = ["hold", "chunk", *dialects.PATHS, *(f"first_{streams}" for streams in plan.levels), "json"]
    return list(plan.only) or every


def measure(plan: Plan, start: "Start", upstream: relays.Running, only: Collection[str] = ()) -> Measured:
    """One round of one relay. Where a phase fails, the next ones get the relay afresh: none pays for another's load."""
    measured = Measured()
    phases = [name for name in names(plan) if not only or name in only]
    while phases:
        with start() as running:
            phases = Round(plan, running, upstream, measured).run(phases)
    return measured


Start = Callable[[], AbstractContextManager[relays.Running]]


class Round:
    """One relay, running, and the loads put on it."""

    def __init__(self, plan: Plan, relay: relays.Running, upstream: relays.Running, measured: Measured) -> None:
        self.plan = plan
        self.relay = relay
        self.upstream = upstream
        self.measured = measured
        self.label = 0
        self.peak = 0
        self.has_settled = False

    def run(self, phases: Sequence[str]) -> list[str]:
        """Run the phases up to the first that fails, which leaves its error. Those that are left."""
        self._warm_up()
        others, began = self._cpu_of_others(), time.monotonic()
        left = list(phases)
        while left:
            name = left.pop(0)
            self._settle(name)
            try:
                for key, value in self._phase(name):  # those before a failure count
                    self.measured.figures[key] = value
            except PhaseError as exc:
                self.measured.errors[name] = str(exc)
                break
        self.measured.busy_with("others_busy", (self._cpu_of_others() - others) / (time.monotonic() - began))
        return left

    def _phase(self, name: str) -> Iterator[tuple[str, float]]:
        kind, _, streams = name.partition("_")
        if kind == "first":
            return self._first_token(int(streams))
        if kind in dialects.PATHS:
            return self._chunk(kind)
        return {"hold": self._hold, "chunk": self._chunk, "json": self._json}[kind]()

    def _warm_up(self) -> None:
        self._perform(Load(port=self.relay.port, stream=False, connections=4, requests=200, seconds=5, deadline_s=30))
        self._streams(streams=4, tokens=20, rate=50, deadline_s=30, requests=20)

    def _hold(self) -> Iterator[tuple[str, float]]:
        """Many streams open at once: memory over the idle process, and how late their last token comes."""
        plan = self.plan
        idle = self._resident()
        self.peak = idle
        nominal = plan.hold_streams / 400 + plan.hold_tokens / plan.hold_rate
        outcome = self._streams(
            streams=plan.hold_streams,
            tokens=plan.hold_tokens,
            rate=plan.hold_rate,
            ramp_s=plan.hold_streams / 400,
            deadline_s=nominal + plan.grace_s,
            requests=plan.hold_streams,
        )
        _require_no_errors(outcome)
        if self.relay.pid is not None:
            yield "idle_mb", idle / _MEGABYTE
            yield "open_mb", (self.peak - idle) / _MEGABYTE
            yield "stream_kb", (self.peak - idle) / 1e3 / plan.hold_streams
        _require_all_finished(outcome)
        yield "lag_p50_ms", quantile(outcome.lag_ms, 0.5)
        yield "lag_p99_ms", quantile(outcome.lag_ms, 0.99)

    def _chunk(self, endpoint: str = dialects.CHAT) -> Iterator[tuple[str, float]]:
        plan = self.plan
        cpu, self.peak = self._cpu(), self._resident()
        nominal = plan.chunk_tokens / plan.chunk_rate
        outcome = self._streams(
            streams=plan.chunk_streams,
            tokens=plan.chunk_tokens,
            rate=plan.chunk_rate,
            ramp_s=0.5,
            deadline_s=nominal + 2 * plan.grace_s,
            requests=plan.chunk_streams,
            endpoint=endpoint,
        )
        _require_no_errors(outcome)
        name = "chunk" if endpoint == dialects.CHAT else endpoint
        yield from self._cost(name, each=outcome.events, since=cpu)
        if self.relay.pid is not None:
            yield f"{name}_peak_mb", self.peak / _MEGABYTE
        _require_all_finished(outcome)

    def _first_token(self, streams: int) -> Iterator[tuple[str, float]]:
        """So many streams open at any time, each followed by the next; no level asks for over 10,000 tokens/s."""
        rate = 200 if streams == 1 else min(50, 10_000 // streams)
        tokens = 5 if streams == 1 else max(20, rate // 2)
        nominal = tokens / rate
        outcome = self._streams(
            streams=streams,
            tokens=tokens,
            rate=rate,
            ramp_s=nominal,
            sample_after_s=nominal,
            samples=streams,  # a slow relay has none yet when the time is over
            seconds=nominal + self.plan.first_token_s,
            deadline_s=2 * nominal + self.plan.first_token_s + self.plan.grace_s,
        )
        _require_no_errors(outcome)
        _require_all_finished(outcome)
        if not outcome.first_token_ms:
            raise PhaseError("no stream began in the time measured")
        yield f"first_{streams}_p50_ms", quantile(outcome.first_token_ms, 0.5)
        yield f"first_{streams}_p99_ms", quantile(outcome.first_token_ms, 0.99)

    def _json(self) -> Iterator[tuple[str, float]]:
        cpu = self._cpu()
        seconds = self.plan.json_s
        load = Load(port=self.relay.port, stream=False, connections=32, seconds=seconds, deadline_s=seconds + 15)
        outcome = self._perform(load)
        _require_no_errors(outcome)
        _require_all_finished(outcome)
        yield "json_rps", outcome.finished / outcome.elapsed_s
        yield from self._cost("json", each=outcome.finished, since=cpu)

    def _cost(self, phase: str, *, each: int, since: float) -> Iterator[tuple[str, float]]:
        """Processor time that a load has just caused, with what the relay put off until it was over."""
        if self.relay.pid is None or not each:
            return
        over = self._cpu()
        self._settle(phase)
        yield f"{phase}_cpu_us", (self._cpu() - since) * 1e6 / each
        yield f"{phase}_later_us", (self._cpu() - over) * 1e6 / each

    def _settle(self, phase: str) -> None:
        """Wait until the relay has done what earlier loads left it to do, so that the next is not charged with it."""
        if self.relay.pid is None or self.has_settled:
            return
        self.has_settled = settle(self._cpu, quiet_s=self.plan.quiet_s, at_most_s=self.plan.settle_s)
        if not self.has_settled:
            waited = f"the relay was still at work after {self.plan.settle_s:.0f} s without a load"
            self.measured.notes[phase] = f"{waited}: a part is charged to the wrong phase, or to none"

    def _streams(
        self, *, streams: int, tokens: int, rate: int, deadline_s: float, endpoint: str = dialects.CHAT, **more: float
    ) -> Outcome:
        relays.set_pace(self.upstream.port, tokens=tokens, rate=rate)
        load = Load(
            port=self.relay.port,
            stream=True,
            endpoint=endpoint,
            connections=streams,
            tokens=tokens,
            rate=rate,
            deadline_s=deadline_s,
            seconds=more.get("seconds", deadline_s),
            ramp_s=more.get("ramp_s", 0.0),
            sample_after_s=more.get("sample_after_s", 0.0),
            samples=int(more.get("samples", 0)),
            requests=int(more.get("requests", 1 << 40)),
        )
        return self._perform(load)

    def _perform(self, load: Load) -> Outcome:
        """Run the load in a process of its own, watching the relay's memory and how busy the other two are."""
        self.label += 1
        self.has_settled = False
        load = self._as_the_relay_wants_it(load)
        upstream_cpu = accounting.cpu_seconds(self.upstream.pid or 0)
        outcome = perform(load, label=self.label, each=self._watch)
        upstream_cpu = accounting.cpu_seconds(self.upstream.pid or 0) - upstream_cpu
        if outcome.elapsed_s > 1:  # less is too short for the ticks that the accounting counts in
            self.measured.busy_with("client_busy", outcome.cpu_s / outcome.elapsed_s)
            self.measured.busy_with("upstream_busy", upstream_cpu / outcome.elapsed_s)
        return outcome

    def _as_the_relay_wants_it(self, load: Load) -> Load:
        api = self.relay.api
        endpoint = api.endpoint if load.endpoint == dialects.CHAT else load.endpoint
        return dataclasses.replace(load, endpoint=endpoint, model=api.model, sends_done=api.sends_done)

    def _watch(self) -> None:
        self.peak = max(self.peak, self._resident())

    def _cpu(self) -> float:
        return accounting.cpu_seconds(self.relay.pid) if self.relay.pid is not None else 0.0

    def _cpu_of_others(self) -> float:
        """Processor time of all that is no part of the measurement."""
        upstream = accounting.cpu_seconds(self.upstream.pid or 0)
        return accounting.machine_cpu_seconds() - accounting.own_cpu_seconds() - upstream - self._cpu()

    def _resident(self) -> int:
        return accounting.resident_bytes(self.relay.pid) if self.relay.pid is not None else 0


def settle(cpu_seconds: Callable[[], float], *, quiet_s: float, at_most_s: float) -> bool:
    """Wait until a process has done next to nothing for a while; whether it came to that."""
    deadline = time.monotonic() + at_most_s
    while time.monotonic() < deadline:
        before = cpu_seconds()
        time.sleep(quiet_s)
        if cpu_seconds() - before <= _QUIET_SHARE * quiet_s:
            return True
    return False


def perform(load: Load, *, label: int, each: Callable[[], None] | None = None) -> Outcome:
    """Put one load on a relay from a process of its own; `each` is called several times a second meanwhile."""
    load = dataclasses.replace(load, label=label % 100)
    argv = [sys.executable, "-m", "tests.bench.client", json.dumps(dataclasses.asdict(load))]
    client = subprocess.Popen(argv, cwd=relays.ROOT, stdout=subprocess.PIPE)
    # Checking what came takes the client a while after its deadline.
    deadline = time.monotonic() + 2 * load.deadline_s + 60
    try:
        while time.monotonic() < deadline:
            try:
                out, _ = client.communicate(timeout=0.2)
            except subprocess.TimeoutExpired:
                if each is not None:
                    each()
                continue
            return _reported(out)
        return Outcome(elapsed_s=1.0, errors={"the load client did not come to an end": 1})
    finally:
        accounting.stop(client)
        if client.stdout is not None:
            client.stdout.close()


def _reported(out: bytes) -> Outcome:
    """What the client says. A report that is none costs its phase, and not the run."""
    try:
        return Outcome(**json.loads(out))
    except ValueError:
        return Outcome(elapsed_s=1.0, errors={f"the load client failed after {len(out)} bytes of its report": 1})


def _require_no_errors(outcome: Outcome) -> None:
    if outcome.errors:
        text, times = next(iter(outcome.errors.items()))
        raise PhaseError(f"{times} × {text}")


def _require_all_finished(outcome: Outcome) -> None:
    if outcome.unfinished or not outcome.finished:
        wanted = outcome.finished + outcome.unfinished
        raise PhaseError(f"fell behind: {outcome.unfinished} of {wanted} not done in {outcome.elapsed_s:.0f} s")
