"""What upstream sent and what the callers saw of each chat, and whether the database says the same."""

import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True, eq=False)
class Chat:
    """One chat, found in the database by what its user says: `name`, unlike that of any other."""

    name: str
    is_streamed: bool
    session: str | None = None
    before: "Chat | None" = None  # the chat of the same session whose history it resends
    sent_at: float | None = None  # when the request was on the wire; times are of `time.monotonic`
    pieces: list[tuple[float, str]] = field(default_factory=list)  # what upstream sent, and when
    text: str = ""  # what upstream means to say
    seen: str = ""  # what the caller was told
    status: int | None = None
    session_id: str | None = None
    is_acknowledged: bool = False  # the caller saw the end
    was_cut: bool = False  # its caller left on purpose
    ended_at: float | None = None  # when the caller saw the end, or the connection break
    held_seconds: float = 0.0  # from upstream's end to the caller's


@dataclass(slots=True)
class Verdict:
    """What the database lacks or has too often."""

    chats: int = 0
    acknowledged: int = 0
    incomplete: int = 0
    lost: int = 0
    doubled: int = 0
    apart: int = 0  # also in a second session, because the first waited on a spill file
    wrong: int = 0
    worst_lag_seconds: float = 0.0
    longest_hold_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def add(self, other: "Verdict") -> None:
        """Take the figures of another round."""
        self.chats += other.chats
        self.acknowledged += other.acknowledged
        self.incomplete += other.incomplete
        self.lost += other.lost
        self.doubled += other.doubled
        self.apart += other.apart
        self.wrong += other.wrong
        self.worst_lag_seconds = max(self.worst_lag_seconds, other.worst_lag_seconds)
        self.longest_hold_seconds = max(self.longest_hold_seconds, other.longest_hold_seconds)
        self.notes += other.notes

    @property
    def is_good(self) -> bool:
        """Nothing lost, nothing twice, nothing wrong."""
        return not (self.lost or self.doubled or self.wrong)


@dataclass(slots=True, eq=False)
class Part:
    """Chats that ran beside each other up to a moment: `cut_at`, when their process was killed."""

    chats: list[Chat]
    cut_at: float
    had_trouble: bool


@dataclass(slots=True)
class _Stored:
    sessions: set[str] = field(default_factory=set)
    has_own: bool = False  # one of its messages is its own exchange's, and not only a history that was resent
    exchanges: list[tuple[str, str, str | None]] = field(default_factory=list)  # id, status, error
    replies: list[tuple[str, str]] = field(default_factory=list)  # content, status


def judge(database: Path, chats: list[Chat], *, cut_at: float, behind_seconds: float, in_trouble: bool) -> Verdict:
    """Hold the database against the ledger; `cut_at` is when the process was killed.

    A history that is resent without an id while its session waits on the spill file begins a session of its own: then
    its messages are in the database before the chat itself is. In trouble also in other orders.
    """
    return judge_parts(database, [Part(chats, cut_at, in_trouble)], behind_seconds=behind_seconds)


def judge_parts(database: Path, parts: list[Part], *, behind_seconds: float) -> Verdict:
    """The same for several parts of the chats in one database."""
    verdict = Verdict()
    connection = sqlite3.connect(database, timeout=20)
    try:
        for part in parts:
            _judge_part(connection, part, verdict, behind_seconds=behind_seconds)
        _judge_file(connection, verdict)
    finally:
        connection.close()
    return verdict


def _judge_part(connection: sqlite3.Connection, part: Part, verdict: Verdict, *, behind_seconds: float) -> None:
    verdict.chats += len(part.chats)
    stored = _stored(connection, [chat.name for chat in part.chats], verdict, in_trouble=part.had_trouble)
    for chat in part.chats:
        _judge_chat(chat, stored.get(chat.name), verdict, cut_at=part.cut_at, behind_seconds=behind_seconds)


def wait_until_settled(database: Path, *, seconds: float = 30) -> None:
    """Wait until no exchange is in progress, and the pieces of those that were are gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        connection = sqlite3.connect(database, timeout=20)
        try:
            if not any(_unfinished(connection)):
                return
        finally:
            connection.close()
        time.sleep(0.05)


def _unfinished(connection: sqlite3.Connection) -> tuple[int, int]:
    """Exchanges in progress, and pieces of replies."""
    in_progress = connection.execute("SELECT COUNT(*) FROM exchanges WHERE status = 'in_progress'").fetchone()[0]
    return in_progress, connection.execute("SELECT COUNT(*) FROM exchange_fragments").fetchone()[0]


def _stored(
    connection: sqlite3.Connection, names: list[str], verdict: Verdict, *, in_trouble: bool
) -> dict[str, _Stored]:
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS names (name TEXT PRIMARY KEY)")
    connection.execute("DELETE FROM names")
    connection.executemany("INSERT INTO names VALUES (?)", [(name,) for name in names])
    found: dict[str, _Stored] = {}
    by_number: dict[int, _Stored] = {}
    for number, name, session_id, is_own in connection.execute(
        """SELECT message_no, content, session_id, EXISTS (SELECT 1 FROM exchanges WHERE leaf_no = message_no)
           FROM messages JOIN names ON content = name WHERE role = 'user' ORDER BY message_no"""
    ):
        known = found.setdefault(name, _Stored())
        if session_id in known.sessions or (known.sessions and (known.has_own or not is_own) and not in_trouble):
            verdict.doubled += 1
            verdict.notes.append(f"{name}: its message is stored twice")
        verdict.apart += bool(known.sessions)
        known.sessions.add(session_id)
        known.has_own |= bool(is_own)
        by_number[number] = known
    for number, *exchange in connection.execute(
        """SELECT leaf_no, exchanges.exchange_id, exchanges.status, error FROM exchanges
           JOIN messages ON message_no = leaf_no JOIN names ON content = name"""
    ):
        by_number[number].exchanges.append(tuple(exchange))
    for number, *reply in connection.execute(
        """SELECT reply.parent_no, reply.content, COALESCE(reply.status, 'completed') FROM messages AS said
           JOIN names ON said.content = name JOIN exchanges ON leaf_no = said.message_no
           JOIN messages AS reply ON reply.parent_no = leaf_no AND reply.exchange_no = exchanges.exchange_no
           WHERE reply.role = 'assistant'"""
    ):
        by_number[number].replies.append(tuple(reply))
    return found


def _judge_file(connection: sqlite3.Connection, verdict: Verdict) -> None:
    answer = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if answer != "ok":
        verdict.wrong += 1
        verdict.notes.append(f"integrity_check: {answer}")
    if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
        verdict.wrong += 1
        verdict.notes.append("foreign_key_check")
    in_progress, fragments = _unfinished(connection)
    if in_progress or fragments:
        verdict.wrong += 1
        verdict.notes.append(f"{in_progress} exchanges in progress, {fragments} fragments")
    # The giant neighbour asks the same again and again, and is answered the same: each answer is a reply of its own.
    for content, count in connection.execute(
        """SELECT content, COUNT(*) FROM messages WHERE content <> ''
           GROUP BY session_id, content, CASE WHEN content LIKE 'giant:%' THEN exchange_no END HAVING COUNT(*) > 1"""
    ):
        verdict.doubled += 1
        verdict.notes.append(f"stored {count} times: {content[:60]}")


def _judge_chat(chat: Chat, stored: _Stored | None, verdict: Verdict, *, cut_at: float, behind_seconds: float) -> None:
    verdict.acknowledged += chat.is_acknowledged
    if chat.is_acknowledged:
        verdict.longest_hold_seconds = max(verdict.longest_hold_seconds, chat.held_seconds)
    if stored is None or not stored.exchanges:
        if chat.is_acknowledged or (chat.sent_at is not None and chat.sent_at < cut_at - behind_seconds):
            verdict.lost += 1
            age = 0 if chat.sent_at is None else cut_at - chat.sent_at
            verdict.notes.append(f"{chat.name}: not stored (acknowledged: {chat.is_acknowledged}, age {age:.2f} s)")
        elif chat.sent_at is not None:
            verdict.worst_lag_seconds = max(verdict.worst_lag_seconds, cut_at - chat.sent_at)
        return
    if len(stored.exchanges) > 1 or len(stored.replies) > 1:
        verdict.doubled += 1
        verdict.notes.append(f"{chat.name}: {len(stored.exchanges)} exchanges, {len(stored.replies)} replies")
    status = stored.exchanges[0][1]
    text = stored.replies[0][0] if stored.replies else ""
    if chat.is_acknowledged and (status != "completed" or text != chat.text or chat.seen != chat.text):
        verdict.lost += 1
        verdict.notes.append(f"{chat.name}: acknowledged, but {status} with {len(text)} of {len(chat.text)}")
        return
    if status == "completed":
        if text != chat.text:
            verdict.wrong += 1
            verdict.notes.append(f"{chat.name}: completed with another text")
        return
    _judge_cut(chat, stored, status, text, verdict, cut_at=cut_at, behind_seconds=behind_seconds)


def _judge_cut(
    chat: Chat,
    stored: _Stored,
    status: str,
    text: str,
    verdict: Verdict,
    *,
    cut_at: float,
    behind_seconds: float,
) -> None:
    verdict.incomplete += 1
    sent = "".join(piece for _, piece in chat.pieces)
    if status != "incomplete" or (stored.replies and stored.replies[0][1] not in ("incomplete", "completed")):
        verdict.wrong += 1
        verdict.notes.append(f"{chat.name}: {status}, {stored.exchanges[0][2]}")
    if not sent.startswith(text):
        verdict.wrong += 1
        verdict.notes.append(f"{chat.name}: not a prefix of what upstream sent")
        return
    if chat.was_cut and not text.startswith(chat.seen):
        verdict.lost += 1
        verdict.notes.append(f"{chat.name}: its caller saw more than is stored")
    if not chat.is_streamed:
        return
    length = 0
    for at, piece in chat.pieces:
        length += len(piece)
        if length > len(text) and cut_at:
            lag = cut_at - at
            verdict.worst_lag_seconds = max(verdict.worst_lag_seconds, lag)
            if lag > behind_seconds:
                verdict.lost += 1
                verdict.notes.append(f"{chat.name}: {lag:.2f} s behind")
            return
