"""Translates named queries for PostgreSQL: `:name` becomes `$1`, and a row of VALUES becomes the rows of a JSON text.

A query that PostgreSQL needs in different SQL is in `sql/postgresql/queries`, under the same name.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from proxy.storage.named import QUERIES, SQL, load_queries
from proxy.storage.usage import FIRST_TOKEN_COLUMNS

# Non-text columns, needed to type the rows of a JSON text. Parameters have the names of their columns.
_NUMBERS = frozenset(
    {
        *(
            "session_no",
            "message_no",
            "exchange_no",
            "user_no",
            "parameters_no",
            "upstream_no",
            "tools_no",
            "leaf_no",
            "parent_no",
            "root_no",
        ),
        *(
            "depth",
            "levels",
            "messages",
            "message_count",
            "linked_count",
            "tokens",
            "sessions",
            "active",
            "sequence",
            "http_status",
        ),
        *("prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens", "cached_tokens"),
        *(
            "time_to_first_token_ms",
            "duration_ms",
            "queued_ms",
            "head_ms",
            "stored_ms",
            "completion_created",
            "requests",
            "incomplete",
            "failed",
        ),
        *FIRST_TOKEN_COLUMNS,
    }
)
# The binary column of those statements that have one.
_BYTES = {
    "insert_message": "chain_hash",
    "rechain_message": "chain_hash",
    "insert_fragment": "data",
    "insert_parameters": "digest",
    "insert_tools": "digest",
    "ahead_prefixes": "hashes",
    "ahead_nodes": "chain_hash",
    "ahead_parameters": "digest",
    "ahead_tools": "digest",
}
# The sequence behind each row id that the server may assign.
SEQUENCES = {
    "insert_session": ("session_no", "sessions_session_no_seq"),
    "insert_message": ("message_no", "messages_message_no_seq"),
    "insert_exchange": ("exchange_no", "exchanges_exchange_no_seq"),
    "insert_user": ("user_no", "users_user_no_seq"),
    "insert_parameters": ("parameters_no", "parameters_parameters_no_seq"),
    "insert_tools": ("tools_no", "tools_tools_no_seq"),
    "insert_upstream": ("upstream_no", "upstreams_upstream_no_seq"),
}

POSTGRESQL_QUERIES = QUERIES | load_queries(SQL / "postgresql" / "queries")


class Statement(NamedTuple):
    """A statement with `$1`, `$2`, …, and its parameter names in that order."""

    text: str
    names: tuple[str, ...]


@lru_cache(maxsize=1024)
def statement(name: str) -> Statement:
    text = re.sub(r"--[^\n]*", "", POSTGRESQL_QUERIES[name]).strip().rstrip(";")
    names = tuple(dict.fromkeys(re.findall(r"(?<!:):([a-z]\w*)", text)))
    return Statement(re.sub(r"(?<!:):([a-z]\w*)", lambda found: f"${names.index(found[1]) + 1}", text), names)


# One JSON parameter takes 26 µs of client CPU per chat, multi-row VALUES 155 µs; COPY takes 32 µs and cannot be
# pipelined (measured).
@lru_cache(maxsize=64)
def for_many_rows(name: str) -> Statement:
    """Rewrites a statement with one row of VALUES to insert the rows of a JSON text (`$1`).

    `names` are the parameters; the JSON text has them under the names of their positions, see `rows_as_json`.
    """
    text = re.sub(r"--[^\n]*", "", POSTGRESQL_QUERIES[name]).strip().rstrip(";")
    before, row, after = re.split(r"VALUES (\(.*?\))", text, maxsplit=1, flags=re.DOTALL)
    names = tuple(re.findall(r":(\w+)", row))
    numbers = dict([SEQUENCES[name]]) if name in SEQUENCES else {}
    values = (
        _value(position, numbers.get(each), is_bytes=_BYTES.get(name) == each)
        for position, each in enumerate(names, start=1)
    )
    listed = ", ".join(f"{value} AS column{position}" for position, value in enumerate(values, start=1))
    typed = ", ".join(
        f"c{position} {'BIGINT' if each in _NUMBERS else 'TEXT'}" for position, each in enumerate(names, start=1)
    )
    rows = f"SELECT {listed} FROM json_to_recordset($1::json) AS given ({typed})"  # noqa: S608 - our own names
    return Statement(before + rows + after, names)


def _value(position: int, sequence: str | None, *, is_bytes: bool) -> str:
    if sequence is not None:
        return f"COALESCE(given.c{position}, nextval('{sequence}'))"
    return f"decode(given.c{position}, 'hex')" if is_bytes else f"given.c{position}"
