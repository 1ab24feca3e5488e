"""The benchmark itself: its statistics and tables on made-up figures, and a short run of the direct row."""

import contextlib
import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the benchmark reads /proc", allow_module_level=True)

from tests.bench import accounting, figures, floor, instructions, phases, relays, stitching, wire
from tests.bench.client import Connection, Load, Outcome, Run
from tests.bench.figures import Cell, Column, Measured
from tests.long import IS_LONG

CPU = Column("chunk_cpu_us", "CPU", "chunk")
FIRST = Column("first_1_p50_ms", "first", "first_1", added=True)
TITLES = {"direct": "direct", "nginx": "nginx", "mine": "mine"}


def rounds_of(**by_relay: list[dict[str, float]]) -> list[dict[str, Measured]]:
    count = max(len(values) for values in by_relay.values())
    return [{key: Measured(dict(values[i])) for key, values in by_relay.items()} for i in range(count)]


def test_a_cell_is_the_median_with_its_spread_and_its_ratio_to_nginx() -> None:
    rounds = rounds_of(
        nginx=[{"chunk_cpu_us": value} for value in (10.0, 8.0, 9.0)],
        mine=[{"chunk_cpu_us": value} for value in (18.0, 27.0, 20.0)],
    )
    assert figures.summarize(rounds, CPU, "mine") == Cell(20.0, 18.0, 27.0, 20 / 9)


def test_what_a_relay_adds_is_taken_from_the_same_round() -> None:
    rounds = rounds_of(
        direct=[{"first_1_p50_ms": 1.0}, {"first_1_p50_ms": 5.0}],
        mine=[{"first_1_p50_ms": 2.0}, {"first_1_p50_ms": 8.0}],
    )
    assert figures.summarize(rounds, FIRST, "mine") == Cell(2.0, 1.0, 3.0)
    assert figures.summarize(rounds, FIRST, "direct") == Cell(3.0, 1.0, 5.0)


def test_a_yardstick_lost_in_noise_gives_no_ratio() -> None:
    rounds = rounds_of(
        direct=[{"first_1_p50_ms": 1.0}], nginx=[{"first_1_p50_ms": 0.9}], mine=[{"first_1_p50_ms": 2.0}]
    )
    cell = figures.summarize(rounds, FIRST, "mine")
    assert cell is not None
    assert cell.ratio is None


def test_a_figure_that_no_round_has_is_no_cell() -> None:
    assert figures.summarize(rounds_of(mine=[{}]), CPU, "mine") is None
    assert figures.show(None) == "–"


@pytest.mark.parametrize(
    ("cell", "shown"),
    (
        (Cell(16.71, 15.14, 17.94, 1.204), "16.7 (15.1–17.9) ×1.20"),
        (Cell(52876, 52876, 52876), "52,876"),
        (Cell(-0.25, -0.5, 0.5, None), "-0.25 (-0.50–0.50)"),
    ),
)
def test_a_cell_is_shown_with_what_it_has(cell: Cell, shown: str) -> None:
    assert figures.show(cell) == shown


@pytest.mark.parametrize(("share", "value"), ((0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)))
def test_a_quantile_is_one_of_the_values(share: float, value: int) -> None:
    assert figures.quantile(list(range(100, 0, -1)), share) == value


def test_the_slope_is_what_grows_with_each_request() -> None:
    assert figures.slope([1, 2, 3], [5, 7, 9]) == pytest.approx(2)
    assert figures.slope([1], [5]) == 0


@pytest.mark.parametrize("markdown", (False, True))
def test_the_report_has_a_line_for_each_relay_and_says_what_failed(markdown: bool) -> None:
    rounds = rounds_of(direct=[{}], nginx=[{"chunk_cpu_us": 8.0, "json_rps": 12000.0}], mine=[{"chunk_cpu_us": 10.0}])
    rounds[0]["mine"].errors["json"] = "3 × closed early"
    text = figures.report(rounds, TITLES, markdown=markdown)
    assert "10.0 ×1.25" in text
    assert "error" in text
    assert "mine: json: 3 × closed early" in text
    assert text.count("\n| mine |" if markdown else "\nmine ") == len(figures.TABLES)


def test_the_report_says_which_relay_did_not_come_to_rest() -> None:
    rounds = rounds_of(direct=[{}], nginx=[{}], mine=[{"chunk_cpu_us": 10.0}])
    rounds[0]["mine"].notes["chunk"] = "still at work"
    text = figures.report(rounds, TITLES, markdown=False)
    assert "10.0" in text
    assert "mine: chunk: still at work" in text


def test_a_relay_is_at_rest_once_its_processor_time_stands_still() -> None:
    readings = iter((0.0, 0.2, 0.2, 0.5, 0.5, 0.5))  # of the begin and the end of each look
    assert phases.settle(lambda: next(readings), at_most_s=60, quiet_s=0.001)
    assert list(readings) == []


def test_a_relay_that_is_never_at_rest_is_not_waited_for_any_longer() -> None:
    working = itertools.count()
    assert not phases.settle(lambda: float(next(working)), at_most_s=0.01, quiet_s=0.001)


class PutsOff(phases.Round):
    """A relay that takes a second for a load of ten requests, and two more when that is over."""

    seconds = 5.0  # from before
    put_off: Iterator[float] = iter(())

    def _cpu(self) -> float:
        self.seconds += next(self.put_off, 0.0)
        return self.seconds

    def _perform(self, load: Load) -> Outcome:
        self.has_settled = False
        self.seconds += 1.0
        self.put_off = iter((0.0, 0.0, 2.0))
        return Outcome(elapsed_s=1.0, finished=10)


def test_a_load_is_charged_with_what_was_put_off_until_it_was_over() -> None:
    one, plan = relays.Running(1, 1), phases.Plan(quiet_s=0.001)
    relay = PutsOff(plan, one, one, Measured())
    for _ in range(2):
        figures_of = dict(relay._phase("json"))
        assert figures_of == {"json_rps": 10.0, "json_cpu_us": 300_000.0, "json_later_us": 200_000.0}


def test_a_relay_that_is_not_installed_says_how_to_install_it(tmp_path: Path) -> None:
    relay = next(relay for relay in relays.RELAYS if relay.key == "vllm-router")
    with (
        pytest.raises(relays.NotInstalledError, match="pip install vllm-router"),
        relays.running(relay, upstream_port=1, commands=str(tmp_path), work=tmp_path, start_s=1),
    ):
        pass


def test_a_stream_cut_short_is_found_out() -> None:
    events = [(b"0" * 16).join(event) for event in wire.stream_events(5)]
    whole = b"".join([wire.stream_head(), *events, wire.done()])
    wire.check_stream(whole, tokens=5)
    for end in range(len(whole)):
        with pytest.raises(ValueError, match=r"."):
            wire.check_stream(whole[:end], tokens=5)


def test_a_whole_reply_cut_short_is_found_out() -> None:
    whole = (b"0" * 16).join(wire.whole_reply())
    wire.check_whole(whole)
    for end in range(len(whole)):
        with pytest.raises(ValueError, match=r"."):
            wire.check_whole(whole[:end])


@pytest.mark.parametrize("length", (1, 3, 6, 1000))
def test_a_head_that_ends_in_a_zero_is_no_end_of_the_reply(length: int) -> None:
    run = Run(Load(port=1, stream=False, connections=1, seconds=1, deadline_s=1, requests=0))
    connection = Connection(run)
    head, _, body = (b"0" * 16).join(wire.whole_reply()).partition(b"\r\n\r\n")
    reply = head + b"\r\nX-Request-Id: a0\r\n\r\n"
    for start in range(0, len(reply), length):
        connection.data_received(reply[start : start + length])
        assert run.outcome.finished == 0
    connection.data_received(body)
    assert run.outcome.finished == 1


def test_the_direct_row_can_be_measured() -> None:
    plan = phases.Plan(
        hold_streams=20, hold_tokens=5, chunk_streams=5, chunk_tokens=5, first_token_s=0.2, json_s=0.2, levels=(1, 20)
    )
    with relays.upstream() as upstream:
        direct = relays.Running(upstream.port, None)
        measured = phases.measure(plan, lambda: contextlib.nullcontext(direct), upstream)
        pid = upstream.pid
    assert measured.errors == {}
    assert {"lag_p50_ms", "first_1_p50_ms", "first_20_p99_ms", "json_rps"} <= measured.figures.keys()
    assert pid is not None
    assert accounting.cpu_seconds(pid) == 0


def test_what_was_written_down_stores_every_chat_again(tmp_path: Path) -> None:
    warm_up, transactions = floor._written_down(tmp_path, 40, a_commit=16)
    assert len(transactions) == 3
    with floor._opened(tmp_path) as connection:
        floor._repeat(connection, [*warm_up, *transactions])
        chats = floor._WARM_UP + 40
        assert connection.execute("SELECT COUNT(*) FROM exchanges WHERE status = 'completed'").fetchone() == (chats,)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_more_chats_a_commit_write_fewer_pages_of_the_log(tmp_path: Path) -> None:
    (alone, entries), (together, same) = (floor._footprint(tmp_path, 32, a_commit=each) for each in (1, 16))
    assert alone > together > 0
    assert entries == same > 0


def test_mixed_lengths_are_the_same_in_every_run() -> None:
    lengths = [len(text) for text in stitching._mixed(900)]
    assert lengths == [len(text) for text in stitching._mixed(900)]
    assert len(set(lengths)) > len(lengths) / 2


def test_a_plain_file_takes_less_than_ours(tmp_path: Path) -> None:
    said = [("What is it?" * 20, "It is this." * 40)] * 20
    stitching._long_chat(tmp_path / "ours.db", said)
    stitching._plain_chat(tmp_path / "plain.db", said)
    assert (tmp_path / "ours.db").stat().st_size > (tmp_path / "plain.db").stat().st_size > 20 * 660


@pytest.mark.skipif(not (IS_LONG and shutil.which("valgrind")), reason="takes half a minute, and valgrind")
def test_instructions_are_counted_for_a_reply_and_a_chunk() -> None:
    counts = instructions.measure("off", replies=2, streams=1)
    assert counts.reply > counts.chunk > 0
