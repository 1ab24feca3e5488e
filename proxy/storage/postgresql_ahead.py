"""Reads the rows that a transaction will need in one round trip, as the results of the named queries it will run."""

from collections.abc import Iterable
from typing import Any

from proxy.storage.connection import Row
from proxy.storage.expected import Expected
from proxy.storage.known_rows import KnownRows
from proxy.storage.queries.sessions import named_by

# Queries without parameters that most transactions run.
ALWAYS_READ = ("last_numbers", "newest_deletion")
# Look-ups whose results another write of the transaction may change.
CHANGING = frozenset(
    {
        *("get_session", "find_session_id", "find_prefix_in_session", "find_node_by_hash", "get_node"),
        "get_exchange_in_progress",
    }
)
_NODE = ("message_no", "session_id", "parent_no", "depth", "role", "chain_hash", "root_no")


def queries_of(expected: Expected) -> list[tuple[str, list[dict[str, Any]]]]:
    """The queries that read the expected rows, each with its rows of VALUES."""
    asked: list[tuple[str, list[dict[str, Any]]]] = [
        ("ahead_users", [{"user_id": each} for each in expected.users]),
        ("ahead_sessions", [{"session_id": each} for each in expected.sessions]),
        (
            "ahead_named_sessions",
            [{"user_id": user_id, "external_id": name} for user_id, name in expected.named_sessions],
        ),
        (
            "ahead_prefixes",
            [
                {"session_id": session_id, "hashes": hashes, "sequence": number}
                for number, (session_id, hashes) in enumerate(expected.prefixes)
            ],
        ),
        ("ahead_nodes", [{"session_id": session_id, "chain_hash": hash_} for session_id, hash_ in expected.nodes]),
        ("ahead_exchanges", [{"exchange_id": each} for each in expected.exchanges]),
        ("ahead_parameters", [{"digest": each} for each in expected.parameters]),
        ("ahead_tools", [{"digest": each} for each in expected.tools]),
        ("ahead_upstreams", [{"name": each} for each in expected.upstreams]),
    ]
    return [(name, rows) for name, rows in asked if rows]


def take(known: KnownRows, expected: Expected, found: dict[str, list[Row]]) -> None:
    """Stores the rows that the queries of `queries_of` have found, under the look-ups that they answer."""
    for name in ALWAYS_READ:
        if name in found:
            known.add(name, {}, found[name])
    _take_keyed(known, "find_user_no", "user_id", expected.users, found.get("ahead_users", ()))
    _take_keyed(known, "find_parameters", "digest", expected.parameters, found.get("ahead_parameters", ()))
    _take_keyed(known, "find_tools", "digest", expected.tools, found.get("ahead_tools", ()))
    _take_keyed(known, "find_upstream", "name", expected.upstreams, found.get("ahead_upstreams", ()))
    sessions = {row["session_id"]: row for row in found.get("ahead_sessions", ())}
    for session_id in expected.sessions:
        _take_session(known, session_id, sessions.get(session_id))
    _take_named(known, expected, found.get("ahead_named_sessions", ()))
    numbers = {session_id: row["session_no"] for session_id, row in sessions.items()}
    _take_prefixes(known, expected, numbers, found.get("ahead_prefixes", ()))
    _take_nodes(known, expected, numbers, found.get("ahead_nodes", ()))
    _take_exchanges(known, expected, found.get("ahead_exchanges", ()))


def _take_keyed(known: KnownRows, name: str, column: str, asked: Iterable[Any], rows: Iterable[Row]) -> None:
    by_key = {row.pop(column): [row] for row in rows}
    for each in asked:
        known.add(name, {column: each}, by_key.get(each, []), each)


def _take_session(known: KnownRows, session_id: str, row: Row | None) -> None:
    parameters = {"session_id": session_id, "user_id": None}
    known.add("get_session", parameters, [] if row is None else [row], session_id)


def _take_named(known: KnownRows, expected: Expected, rows: Iterable[Row]) -> None:
    found = {(row.pop("named_by"), row.pop("name")): row for row in rows}
    for user_id, name in expected.named_sessions:
        row = found.get((user_id, name))
        if row is not None:
            _take_session(known, row["session_id"], row)
        ids = [] if row is None else [{"session_id": row["session_id"]}]
        known.add("find_session_id", named_by(name, user_id=user_id), ids, name)


def _take_prefixes(known: KnownRows, expected: Expected, numbers: dict[str, int], rows: Iterable[Row]) -> None:
    found = {row.pop("sequence"): row for row in rows}
    for number, (session_id, hashes) in enumerate(expected.prefixes):
        if session_id not in numbers:
            continue
        row = found.get(number)
        prefixes = []
        if row is not None:
            prefixes = [{each: row[each] for each in ("position", "message_no", "depth", "root_no", "has_detached")}]
            _take_node(known, row)
            if row["root_depth"] is not None:
                root = {each: row[f"root_{each}"] for each in ("parent_no", "depth", "role", "chain_hash", "root_no")}
                _take_node(known, root | {"message_no": row["root_no"], "session_id": session_id})
        parameters = {"hashes": hashes, "session_no": numbers[session_id]}
        known.add("find_prefix_in_session", parameters, prefixes, session_id)


def _take_node(known: KnownRows, row: Row) -> None:
    node = {each: row[each] for each in _NODE}
    known.add("get_node", {"message_no": node["message_no"]}, [node], node["session_id"])


def _take_nodes(known: KnownRows, expected: Expected, numbers: dict[str, int], rows: Iterable[Row]) -> None:
    found = {(row["session_id"], row["chain_hash"]): row for row in rows}
    for session_id, hash_ in expected.nodes:
        if session_id in numbers:
            row = found.get((session_id, hash_))
            parameters = {"chain_hash": hash_, "session_no": numbers[session_id]}
            known.add("find_node_by_hash", parameters, [] if row is None else [row], session_id)


def _take_exchanges(known: KnownRows, expected: Expected, rows: Iterable[Row]) -> None:
    found = {row["exchange_id"]: row for row in rows}
    for exchange_id in expected.exchanges:
        row = found.get(exchange_id)
        if row is None:
            known.add("get_exchange_in_progress", {"exchange_id": exchange_id}, [], exchange_id)
            continue
        node = {each: row.pop(each) for each in ("parent_no", "depth", "role", "chain_hash", "root_no")}
        known.add("get_exchange_in_progress", {"exchange_id": exchange_id}, [row], exchange_id, row["session_id"])
        if node["depth"] is not None:
            _take_node(known, node | {"message_no": row["leaf_no"], "session_id": row["session_id"]})
