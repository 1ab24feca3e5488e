"""From what each round measured to the table: medians and spreads, what a relay adds to direct, ratios to nginx."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

DIRECT = "direct"
YARDSTICK = "nginx"


@dataclasses.dataclass(slots=True)
class Measured:
    """One relay in one round: its figures, or why a phase has none; `notes` say what to know of figures it has."""

    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)

    def busy_with(self, key: str, share: float) -> None:
        """Keep the largest share of a core that the client or the upstream took."""
        self.figures[key] = max(self.figures.get(key, 0.0), share)


Rounds = Sequence[Mapping[str, Measured]]  # one mapping a round, by the relay's key


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """One figure of the table. `added`: what the relay adds to the direct way in the same round."""

    key: str
    title: str
    phase: str
    added: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """The median over the rounds, the smallest and the largest, and the median's ratio to nginx's."""

    median: float
    low: float
    high: float
    ratio: float | None = None


TABLES: Mapping[str, Sequence[Column]] = {
    "Processor time and throughput": (
        Column("chunk_cpu_us", "CPU µs per chunk, 200 streams × 50/s", "chunk"),
        Column("responses_cpu_us", "the same, /v1/responses", "responses"),
        Column("messages_cpu_us", "the same, /v1/messages", "messages"),
        Column("json_cpu_us", "CPU µs per JSON request", "json"),
        Column("json_rps", "JSON requests/s, 32 connections", "json"),
    ),
    "Added time to first token, ms (direct: its whole time)": tuple(
        Column(f"first_{n}_{p}_ms", f"{n:,} stream{'s' * (n > 1)} {p}", f"first_{n}", added=True)
        for n in (1, 50, 200, 1000)
        for p in ("p50", "p99")
    ),
    "1,000 streams × 20 chunks/s": (
        Column("idle_mb", "idle MB", "hold"),
        Column("open_mb", "MB over idle", "hold"),
        Column("stream_kb", "KB per stream", "hold"),
        Column("lag_p50_ms", "last token late by, added ms p50", "hold", added=True),
        Column("lag_p99_ms", "the same p99", "hold", added=True),
    ),
}
PEERS: Mapping[str, Sequence[Column]] = {
    "Beside programs that record, too": (
        Column("chunk_cpu_us", "CPU µs/chunk, 200 × 50/s", "chunk"),
        Column("json_cpu_us", "CPU µs/reply", "json"),
        Column("json_rps", "replies/s, 32 connections", "json"),
        Column("first_50_p50_ms", "first token added, 50 streams p50 ms", "first_50", added=True),
        Column("first_50_p99_ms", "p99 ms", "first_50", added=True),
        Column("chunk_peak_mb", "MB at 200 streams", "chunk"),
    ),
}


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """How much y grows for each x, by least squares; 0 where there is one point only."""
    return statistics.linear_regression(xs, ys).slope if len(set(xs)) > 1 else 0.0


def summarize(rounds: Rounds, column: Column, key: str) -> Cell | None:
    """The cell of one relay; None where no round has the figure."""
    values = _values(rounds, column, key)
    if not values:
        return None
    cell = Cell(statistics.median(values), min(values), max(values))
    yardstick = _values(rounds, column, YARDSTICK)
    # A yardstick of nothing, or less than nothing where noise exceeds it, gives no ratio; nor is direct a relay.
    if key == DIRECT or not yardstick or statistics.median(yardstick) <= 0:
        return cell
    return dataclasses.replace(cell, ratio=cell.median / statistics.median(yardstick))


def _values(rounds: Rounds, column: Column, key: str) -> list[float]:
    values = []
    for measured in rounds:
        value = measured[key].figures.get(column.key) if key in measured else None
        if value is None:
            continue
        if column.added and key != DIRECT:
            direct = measured[DIRECT].figures.get(column.key) if DIRECT in measured else None
            if direct is None:
                continue
            value -= direct
        values.append(value)
    return values


def errors_of(rounds: Rounds, key: str) -> dict[str, str]:
    """What went wrong with a relay, by phase: the last round's word on each."""
    return {phase: text for measured in rounds if key in measured for phase, text in measured[key].errors.items()}


def notes_of(rounds: Rounds, key: str) -> dict[str, str]:
    """What to know of a relay's figures, by phase: the last round's word on each."""
    return {phase: text for measured in rounds if key in measured for phase, text in measured[key].notes.items()}


def show(cell: Cell | None) -> str:
    """`16.7 (15.1–17.9) ×1.2`; without a spread where there is one round."""
    if cell is None:
        return "–"
    spread = f" ({number(cell.low)}–{number(cell.high)})" if cell.low != cell.high else ""
    ratio = f" ×{number(cell.ratio)}" if cell.ratio is not None else ""
    return f"{number(cell.median)}{spread}{ratio}"


def show_median(cell: Cell | None) -> str:
    return "–" if cell is None else number(cell.median)


def number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"


def report(
    rounds: Rounds,
    titles: Mapping[str, str],
    *,
    markdown: bool,
    tables: Mapping[str, Sequence[Column]] = TABLES,
    shown: Callable[[Cell | None], str] = show,
) -> str:
    """All tables, and below them what went wrong and what is to be known."""
    layout = as_markdown if markdown else _plain
    parts = []
    for title, columns in tables.items():
        head = ["", *(column.title for column in columns)]
        rows = [[titles[key], *(_text(rounds, column, key, shown) for column in columns)] for key in titles]
        parts.append(f"{'### ' if markdown else ''}{title}\n\n{layout(head, rows)}")
    notes = [
        f"{titles[key]}: {phase}: {text}"
        for key in titles
        for of_key in (errors_of(rounds, key), notes_of(rounds, key))
        for phase, text in of_key.items()
    ]
    return "\n\n".join([*parts, *(["\n".join(f"- {note}" for note in notes)] if notes else []), _shares(rounds)]) + "\n"


def _text(rounds: Rounds, column: Column, key: str, shown: Callable[[Cell | None], str]) -> str:
    errors = errors_of(rounds, key)
    if "start" in errors:
        return errors["start"] if column.key in _FIRST_COLUMNS else ""
    # One failed round must not hide behind the median of the others.
    return "error" if column.phase in errors and column.key not in _SURVIVORS else shown(summarize(rounds, column, key))


_FIRST_COLUMNS = {columns[0].key for columns in (*TABLES.values(), *PEERS.values())}
# Measured also where the streams then fall behind, which is said below the tables.
_SURVIVORS = {"idle_mb", "open_mb", "stream_kb", "chunk_cpu_us", "chunk_peak_mb"}


def _shares(rounds: Rounds) -> str:
    """How near the load client and the upstream came to a whole core, which would make them the limit; and others."""
    most = dict.fromkeys(("client_busy", "upstream_busy", "others_busy"), 0.0)
    for measured in (one for by_relay in rounds for one in by_relay.values()):
        for key in most:
            most[key] = max(most[key], measured.figures.get(key, 0.0))
    client, upstream, others = (f"{share:.0%}" for share in most.values())
    return (
        f"At most the load client took {client} of a core in a phase, the upstream {upstream}; "
        f"processes that are no part of this {others} in a round."
    )


def _plain(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  ".join(_pad(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in (head, *rows)
    )


def _pad(cell: str, width: int, position: int) -> str:
    return cell.ljust(width) if position == 0 else cell.rjust(width)


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(markdown_row(row) for row in (head, rule, *rows))


def markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
