"""`python -m tests.bench.page_times`: how long each page of the history takes where a million sessions are stored."""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

from proxy import ids
from proxy.search.index import Index
from proxy.storage import sqlite
from tests.bench.pages import open_page
from tests.serving import ServerProcess

_USERS = 1_000
_DAYS = 100
_MODELS = ("qwen3-8b", "coder-14b", "rarely-used")
_RARE_EVERY = 50_000  # sessions: of the third model, and those that failed
_CUT_EVERY = 1_000

_FILL = """
WITH RECURSIVE numbers (n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last),
told AS (
    SELECT n, printf('%s-7000-8000-%012x', '00000000-0000', n) AS id,
           strftime('%Y-%m-%dT%H:%M:%S.000Z', :began + n * :step, 'unixepoch') AS at,
           CASE WHEN n % 10 = 0 THEN 0 ELSE n * 7919 % :users END AS user_no,
           CASE WHEN n % :rare = 7 THEN 3 ELSE 1 + (n % 4 = 0) END AS parameters_no,
           CASE WHEN n % :rare = 9 THEN 'failed' WHEN n % :cut = 5 THEN 'incomplete' ELSE 'completed' END AS status
    FROM numbers
)
"""
_SESSIONS = """
INSERT INTO sessions (session_no, session_id, user_id, title, is_active, leaf_no, message_count, tokens, created_at,
                      updated_at)
SELECT n, id, 'user-' || user_no, 'Question ' || n || ' about the river and the bridge', n % 100 <> 3, 2 * n, 2, 40,
       at, at
FROM told
"""
_MESSAGES = """
INSERT INTO messages (message_no, message_id, session_id, session_no, parent_no, depth, chain_hash, exchange_no, role,
                      content, model, tokens, created_at)
SELECT 2 * n - 1 + d, printf('00000000-0001-7000-8000-%012x', 2 * n + d), id, n, CASE d WHEN 1 THEN 2 * n - 1 END, d,
       randomblob(16), n, CASE d WHEN 1 THEN 'assistant' ELSE 'user' END,
       CASE d WHEN 1 THEN 'The bridge number ' || n || ' is old. The river below it is called ' || hex(randomblob(4))
              ELSE 'Question ' || n || ' about the river and the bridge' END,
       NULL, 40 * d, at
FROM told, (SELECT 0 AS d UNION ALL SELECT 1)
"""
_EXCHANGES = """
INSERT INTO exchanges (exchange_no, exchange_id, session_no, user_no, leaf_no, status, http_status, finish_reason,
                       prompt_tokens, completion_tokens, total_tokens, time_to_first_token_ms, duration_ms,
                       parameters_no, completion_id, created_at)
SELECT n, printf('00000000-0002-7000-8000-%012x', n), n, user_no + 10, 2 * n - 1, status, 200, 'stop', 60, 40, 100, 30,
       900, parameters_no, '', at
FROM told
"""
_USAGE = """
INSERT INTO usage_days
SELECT substr(e.created_at, 1, 10), e.user_no, p.model, p.endpoint, COUNT(*), SUM(e.status = 'incomplete'),
       SUM(e.status = 'failed'), SUM(e.prompt_tokens), 0, SUM(e.completion_tokens), 0, COUNT(*), 0, 0, 0, 0, 0, 0, 0,
       0, 0, 0
FROM exchanges AS e
JOIN parameters AS p ON p.parameters_no = e.parameters_no
GROUP BY 1, 2, 3, 4
"""
_A_BATCH = 50_000


def fill(path: Path, *, sessions: int) -> None:
    """Make a database of so many sessions of two messages each, with its search index."""
    began = time.time() - _DAYS * 86_400
    with contextlib.closing(sqlite.connect(path)) as connection:
        sqlite.prepare(connection)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "foreign_keys = OFF", "cache_size = -500000"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        now = ids.timestamp()
        users = [(number + 10, f"user-{number}", sessions // _USERS, now, now) for number in range(_USERS)]
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO users (user_no, user_id, session_count, created_at, last_active) VALUES (?, ?, ?, ?, ?)", users
        )
        connection.executemany(
            "INSERT INTO parameters VALUES (?, ?, '/v1/chat/completions', ?, '{}', NULL)",
            [(number, bytes([number]), model) for number, model in enumerate(_MODELS, 1)],
        )
        for first in range(1, sessions + 1, _A_BATCH):
            given = {"first": first, "last": min(first + _A_BATCH - 1, sessions), "began": began, "users": _USERS}
            given |= {"step": _DAYS * 86_400 / sessions, "rare": _RARE_EVERY, "cut": _CUT_EVERY}
            for statement in (_SESSIONS, _MESSAGES, _EXCHANGES):
                connection.execute(_FILL + statement, given)
        connection.execute(_USAGE)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
    with contextlib.closing(Index(path)) as index:
        while index.step():
            pass
    os.sync()


PAGES = {
    "list": "/ui",
    "list, a user": "/ui?user=user-7",
    "list, user with a tenth": "/ui?user=user-0",
    "list, a model": "/ui?model=coder-14b",
    "list, a rare model": "/ui?model=rarely-used",
    "list, no such model": "/ui?model=none",
    "list, cut": "/ui?status=incomplete",
    "list, failed": "/ui?status=failed",
    "list, streaming": "/ui?status=in_progress",
    "list, rare model of a user": "/ui?user=user-0&model=rarely-used",
    "list, failed of a user": "/ui?user=user-0&status=failed",
    "list, some days": "/ui?since={since}&until={until}",
    "list, far down": "/ui?after={until}~",
    "search, a word everywhere": "/ui/search?q=river",
    "search, a number": "/ui/search?q=Question+123456+",
    "search, two letters": "/ui/search?q=ri",
    "search, nothing": "/ui/search?q=zebra",
    "search, newest": "/ui/search?q=bridge&order=newest",
    "search, of a user": "/ui/search?q=bridge&user=user-7",
    "usage": "/ui/usage",
    "usage by model": "/ui/usage?by=model",
    "usage by user": "/ui/usage?by=user",
    "usage by endpoint": "/ui/usage?by=endpoint",
    "usage, 100 days": "/ui/usage?since={since_100}",
    "usage, 100 days by model": "/ui/usage?by=model&since={since_100}",
    "usage, 100 days by user": "/ui/usage?by=user&since={since_100}",
    "usage of a user": "/ui/usage?user=user-7",
    "keys": "/ui/keys",
}


def measure(path: Path, *, times: int) -> None:
    """Print a line for each page: the first time, the median and slowest of the others, and the server's CPU time."""
    now = time.time()
    days = {
        name: ids.timestamp(now - days * 86_400)[:10]
        for name, days in (("since", 60), ("until", 50), ("since_100", 99))
    }
    server = ServerProcess(path.parent, "http://127.0.0.1:9", DATABASE_URL=f"sqlite:///{path}")
    server.start(seconds=120)
    try:
        print(f"{'page':<28}{'first':>9}{'median':>9}{'slowest':>9}{'CPU':>9}   ms")
        with httpx.Client(base_url=server.url, timeout=60) as http:
            for name, address in PAGES.items():
                first, before = open_page(http, address.format(**days)), _cpu_ms(server.pid)
                took = [open_page(http, address.format(**days)) for _ in range(times)]
                cpu = (_cpu_ms(server.pid) - before) / times
                print(f"{name:<28}{first:>9.0f}{statistics.median(took):>9.0f}{max(took):>9.0f}{cpu:>9.0f}", flush=True)
    finally:
        server.stop()


def _cpu_ms(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.page_times", description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--database", type=Path, help="made there, and used again where it is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pages-") as folder:
        path = options.database or Path(folder) / "stellarchat.db"
        if not path.exists():
            began = time.monotonic()
            fill(path, sessions=options.sessions)
            print(f"{options.sessions:,} sessions made in {time.monotonic() - began:.0f} s", file=sys.stderr)
        measure(path, times=options.times)


if __name__ == "__main__":
    main()
