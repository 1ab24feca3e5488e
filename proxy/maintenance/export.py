"""Exports the history as text: `jsonl` (lossless, for import), `openai` (for training), `markdown` (for reading).

A jsonl file starts with a header that contains its version, followed by users and blobs, then each session with its
messages (parents first) and exchanges. JSON columns are exported as strings, byte for byte as stored. Messages refer to
each other by `message_id`, because row numbers are internal to one database. API keys are not exported.
"""

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from proxy.history import branches
from proxy.history.serializers import openai_message
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.context import placed_messages
from proxy.storage.damaged_values import nearest
from proxy.wire import json_text
from proxy.wire.message import readable
from proxy.wire.surrogates import encodable

# Version of the jsonl format; it is in the header line.
VERSION = 1

Format = Literal["jsonl", "openai", "markdown"]
FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES: dict[Format, str] = {
    "jsonl": "application/x-ndjson",
    "openai": "application/x-ndjson",
    "markdown": "text/markdown; charset=utf-8",
}

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What to export: everything, one user, or one session. `completed_only` applies to the openai format.

    `names_upstreams` includes upstream addresses, which only an admin may see.
    """

    user_id: str | None = None
    session_id: str | None = None
    completed_only: bool = False
    names_upstreams: bool = True


def export(connection: Connection, scope: Scope, *, format_: Format) -> Iterator[str]:
    """Generates the export. The connection should stay in one read transaction until the end."""
    writers = {"jsonl": _jsonl, "openai": _openai, "markdown": _markdown}
    return writers[format_](connection, scope)


def count_sessions(connection: Connection, scope: Scope) -> int:
    """The number of sessions in the export."""
    return sum(1 for _ in queries.export.iterate_sessions(connection, **_within(scope)))


# --- jsonl


def _jsonl(connection: Connection, scope: Scope) -> Iterator[str]:
    yield _line("stellarchat", {"version": VERSION})
    within = _within(scope)
    for row in queries.export.iterate_users(connection, **within):
        yield _line("user", row)
    for row in queries.export.iterate_blobs(connection, **within):
        yield _line("blob", row)
    for row in queries.export.iterate_sessions(connection, **within):
        yield _line("session", row)
        yield from _jsonl_session(connection, row["session_id"], names_upstreams=scope.names_upstreams)


def _jsonl_session(connection: Connection, session_id: str, *, names_upstreams: bool) -> Iterator[str]:
    for row in queries.export.iterate_messages(connection, session_id):
        message_no = row.pop("message_no")
        if row["content_form"] == "json":
            row["blobs"] = queries.export.list_digests(connection, message_no)
        yield _line("message", row)
    for row in queries.export.iterate_exchanges(connection, session_id):
        if not names_upstreams:
            row["upstream"] = None
        row["context"] = _context_by_id(connection, row["context"])
        if row["status"] == "in_progress":
            fragments = queries.fragments.iterate_fragments(connection, row["exchange_id"])
            row["fragments"] = [b64encode(data).decode() for data in fragments]
        yield _line("exchange", row)


def _context_by_id(connection: Connection, context: str | None) -> list[Any] | None:
    if context is None:
        return None
    placed = []
    for position, message_no in placed_messages(context):
        message_id = queries.export.find_message_id(connection, message_no)
        if message_id is not None:
            placed.append([position, message_id])
    return placed


def _line(kind: str, row: Row) -> str:
    return json_text.dumps({"kind": kind, **row}) + "\n"


# --- openai


def _openai(connection: Connection, scope: Scope) -> Iterator[str]:
    for session in queries.export.iterate_sessions(connection, **_within(scope)):
        for _, numbers in _branches(connection, session["session_id"]):
            messages = _messages(connection, numbers, completed_only=scope.completed_only)
            if messages:
                yield json_text.dumps({"messages": messages}) + "\n"


def _messages(connection: Connection, numbers: list[int], *, completed_only: bool) -> list[Row]:
    """A branch's messages; [] if `completed_only` requires a complete reply at the end and there is none."""
    rows = [row for number in numbers if (row := queries.messages.get_message(connection, number)) is not None]
    if completed_only and (rows[-1].role != "assistant" or any(row.status != "completed" for row in rows)):
        return []
    return [branches.get_message(connection, row.message_no, show=openai_message) for row in rows]


def _branches(connection: Connection, session_id: str) -> Iterator[tuple[str, list[int]]]:
    """Each branch of a session: the id of its leaf, and its message numbers in the order they were sent."""
    session = queries.sessions.get_session(connection, session_id)
    assert session is not None
    for leaf in queries.export.list_leaves(connection, session_id):
        if leaf["role"] in ("system", "developer") and leaf["message_no"] != session.leaf_no:
            continue  # a replaced system message is not a conversation
        steps = queries.messages.list_path(connection, leaf["message_no"])[::-1]
        numbers = branches.as_sent(connection, steps)
        if numbers:
            yield leaf["message_id"], numbers


# --- markdown


def _markdown(connection: Connection, scope: Scope) -> Iterator[str]:
    for session in queries.export.iterate_sessions(connection, **_within(scope)):
        yield _heading(session)
        branches = list(_branches(connection, session["session_id"]))
        # The newest branch comes first; the others show only messages not shown before.
        branches.sort(key=lambda branch: branch[0] != session["leaf_id"])
        shown: set[int] = set()
        for position, (_, numbers) in enumerate(branches):
            if position:
                yield f"---\n\n*Another branch ({position + 1} of {len(branches)})*\n\n"
            for number in numbers:
                if number not in shown:
                    yield encodable(_markdown_message(connection, number))
            shown.update(numbers)


def _heading(session: Row) -> str:
    title = " ".join(nearest(session["title"], (str,)).split())
    return f"# {title}\n\nSession `{session['session_id']}` of `{session['user_id']}`, {session['created_at']}\n\n"


def _markdown_message(connection: Connection, number: int) -> str:
    row = queries.messages.get_message(connection, number)
    if row is None:
        return ""  # a context may refer to a deleted message
    message = branches.get_message(connection, number, show=openai_message)
    notes = [row.created_at, row.model, "" if row.status == "completed" else row.status]
    head = f"## {row.role} ({', '.join(note for note in notes if note)})\n\n"
    return head + "".join(part + "\n\n" for part in _markdown_parts(message))


def _markdown_parts(message: Row) -> Iterator[str]:
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        yield "\n".join("> " + line for line in reasoning.split("\n"))
    content = message.get("content")
    if text := readable(content):
        yield text
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and not isinstance(part.get("text"), str):
            yield f"*[{part.get('type', 'attachment')}]*"
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        yield f"```json\n{json_text.dumps(call)}\n```"


# --- rows


def _within(scope: Scope) -> dict[str, str | None]:
    return {"user_id": scope.user_id, "session_id": scope.session_id}
