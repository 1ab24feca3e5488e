"""Finds text in messages: every message that holds it, whatever the script, the case, or the length of the query.

The index is derived data in a file of its own: it may lag, be missing or be thrown away, and a search is still right.
It only names candidates; each is looked through before it counts, and what is not indexed yet is looked through too. So
it can be filled in spare time, and no chat waits for it.

What is indexed are FTS5's trigrams of a message, case-folded: all its runs of three characters. Words would need to
know where Chinese or Thai words end. A query of three characters or more is all its trigrams. FTS5 finds nothing
shorter by itself, and most Chinese words have two characters: such a query is any of the trigrams that begin with it,
to which end every message is followed by two characters more. FTS5 keeps for each trigram the messages it is in, and
nothing else. The user is one more, so that a search stays among its own user's messages.

That leaves FTS5 without what bm25 needs, so hits are ranked by their texts, which are at hand: the newest of them among
each other, as many as `RANKED` and the bounds beside it say, and all older ones follow newest first. What a message
scores depends on itself and the query alone; so pages are parts of one order, which only a new hit can shift.

The index comes in segments of message numbers, which are never used twice. Where most of a segment's messages have been
deleted it is dropped, and made again of what is left: retention shrinks the index too. So is one that holds a message
of a deleted user, of whom nothing shall be left.
"""

import fcntl
import logging
import os
import re
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from proxy.errors import APIError
from proxy.storage import free_pages, tombstones
from proxy.storage.queries import named_statements
from proxy.storage.sqlite import SQL, connect, transaction

logger = logging.getLogger(__name__)

STATEMENTS = named_statements((SQL / "sqlite" / "search.sql").read_text(encoding="utf-8"))
SEGMENT = 2**18
# Messages of a segment that are looked at to see how many are left: each may be a read from the disk.
_SAMPLE = 256
QUERY_LENGTH_MAX = 1000

Order = Literal["relevance", "newest"]
ORDERS: tuple[Order, ...] = get_args(Order)

# The hits that are ranked among each other end with the one that reaches a bound: so many, so much text, or so many
# candidates looked through since the newest hit.
RANKED = 1000
_RANKED_CHARACTERS = 2**22
_RANKED_CANDIDATES = 2**15

# BM25's parameters. It has one term, the query, and its typical length is fixed: an average would change with every
# message, and the order of pages with it.
_SATURATION = 1.2
_LENGTH_SHARE = 0.75
_TYPICAL_LENGTH = 1000
# An occurrence within a word, such as "cat" in "location", counts so much of one that is a word of its own.
_PART_OF_WORD = 0.1
_OCCURRENCES_MAX = 32  # of a message; more hardly raise its score

# Two characters of one word. Thai to Myanmar, Khmer, Chinese and Japanese have no spaces: there every edge is a word's.
_WITHIN_WORD = re.compile(
    r"[^\W\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff]{2}"
)

_GRAM = 3
_GRAMS_ASKED = 24
# More runs of three than this begin with characters that most messages have: it is quicker to look through these.
_RUNS_ASKED = 500
# Follows each message, so that its last characters are what a run of three begins with.
_PADDING = "\x02" * (_GRAM - 1)
_BATCH = 400
_BATCH_CHARACTERS = 2**19
_SCHEMA = 5
_LAST_CHARACTER = "\U0010ffff"
# Where characters without a meaning begin, which texts hardly ever hold: three of them stand for a user.
_PRIVATE_USE = 0xF0000
_END = 2**63 - 1
_GIVE_BACK_SECONDS = 5.0  # after a segment is dropped; what is left goes with the next one
_TICK_INSTRUCTIONS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is looked for, and where. `text` is not empty. Without a user it is looked for in everyone's messages."""

    text: str
    user_id: str | None = None
    session_id: str | None = None
    role: str | None = None
    model: str | None = None
    since: str | None = None
    until: str | None = None


class Hit(NamedTuple):
    """A message that holds the text, and the text around it, marked with `**`."""

    message_no: int
    snippet: str


class _Segment(NamedTuple):
    segment: int
    indexed_no: int
    indexed_id: str
    documents: int

    @property
    def first(self) -> int:
        return self.segment * SEGMENT


class TimeOutError(APIError):
    """The search took longer than it may."""

    def __init__(self) -> None:
        super().__init__("The search took too long; narrow it down.", status=503, code="search_timeout")


def index_path(database: Path) -> Path:
    """Where a database's index is."""
    return database.with_name(database.name + "-search")


# --- searching


def search(
    connection: sqlite3.Connection,
    query: Query,
    *,
    limit: int,
    offset: int = 0,
    order: Order = "relevance",
    seconds: float = 10,
) -> tuple[list[Hit], bool]:
    """The hits, and whether there are more: the most relevant of the newest first, or just the newest first.

    Relevant is a text that holds what is asked often, as words of its own, and little else; of equals the newer one.
    Raises TimeOutError.
    """
    needle = query.text.casefold()
    with _limited(connection, seconds):
        looked_at = _looked_at(connection, query, needle)
        found = filter(None, looked_at) if order == "newest" else _ranked(looked_at, needle)
        page = list(islice(found, offset, offset + limit + 1))
    return [_hit(each, needle) for each in page[:limit]], len(page) > limit


@contextmanager
def opened(database: Path) -> Iterator[sqlite3.Connection]:
    """The database, to read, with its index where it has one."""
    with closing(connect(database)) as connection:
        path = index_path(database)
        if path.is_file():
            with suppress(sqlite3.Error):
                connection.execute("ATTACH :path AS search", {"path": str(path)})
                if _version_of(connection, "search") != _SCHEMA:  # it is about to be made anew
                    connection.execute("DETACH search")
        connection.execute("PRAGMA query_only = ON")
        yield connection


class _Found(NamedTuple):
    """A message that holds the text."""

    message_no: int
    content: str
    folded: str


def _looked_at(connection: sqlite3.Connection, query: Query, needle: str) -> Iterator[_Found | None]:
    """Every candidate, newest first; None for one that is no hit."""
    for message_no, content in _candidates(connection, query):
        folded = (content or "").casefold()
        yield _Found(message_no, content or "", folded) if needle in folded else None


def _ranked(looked_at: Iterator[_Found | None], needle: str) -> Iterator[_Found]:
    """The newest hits by their score, then the others newest first."""
    scored: list[tuple[float, _Found]] = []
    characters = candidates = 0
    for found in looked_at:
        if found is not None:
            scored.append((_score(found.folded, needle), found))
            characters += len(found.content)
        candidates += bool(scored)
        if len(scored) >= RANKED or characters >= _RANKED_CHARACTERS or candidates >= _RANKED_CANDIDATES:
            break
    scored.sort(key=itemgetter(0), reverse=True)  # stable: of equals the newer one stays first
    for _, found in scored:
        yield found
    yield from filter(None, looked_at)


def _score(folded: str, needle: str) -> float:
    """BM25 of the one term that the query is, from 0 to 1."""
    count = sum(1 if is_word else _PART_OF_WORD for _, is_word in _occurrences(folded, needle))
    return count / (count + _SATURATION * (1 - _LENGTH_SHARE + _LENGTH_SHARE * len(folded) / _TYPICAL_LENGTH))


def _occurrences(folded: str, needle: str) -> Iterator[tuple[int, bool]]:
    """Where the first occurrences are, and whether words begin and end with them."""
    position = folded.find(needle)
    for _ in range(_OCCURRENCES_MAX):
        if position < 0:
            return
        end = position + len(needle)
        yield position, not (_is_within_word(folded, position) or _is_within_word(folded, end))
        position = folded.find(needle, end)


def _is_within_word(text: str, at: int) -> bool:
    return at > 0 and _WITHIN_WORD.match(text, at - 1) is not None


def _hit(found: _Found, needle: str) -> Hit:
    """The hit, with the text around its first occurrence as a word, where it has one."""
    words = (position for position, is_word in _occurrences(found.folded, needle) if is_word)
    position = next(words, found.folded.find(needle))
    return Hit(found.message_no, _snippet(found.content, position, len(needle)))


def _candidates(connection: sqlite3.Connection, query: Query) -> Iterator[tuple[int, str | None]]:
    """Every message that may hold the text, newest first; without its text where a filter leaves it out."""
    filters: dict[str, Any] = {name: getattr(query, name) for name in ("role", "model", "since", "until")}
    if query.session_id is not None:
        yield from connection.execute(STATEMENTS["list_in_session"], {**filters, "session_id": query.session_id})
        return
    filters["user_id"] = query.user_id
    owner = None if query.user_id is None else _quoted(_owner(query.user_id))
    folded = _folded(query.text)
    grams = _grams_asked(folded)
    first, end = _first_of(connection, query), _END
    for segment in _segments_of(connection):
        unindexed = {**filters, "after": max(segment.indexed_no, first - 1), "end": end}
        yield from connection.execute(STATEMENTS["list_not_indexed"], unindexed)
        # What lies below a segment and above the next one is not indexed: it is a segment not begun yet.
        end = segment.first
        match = _match(connection, segment, owner=owner, folded=folded, grams=grams)
        if match == "":
            every = {**filters, "after": max(segment.first, first) - 1, "end": segment.indexed_no + 1}
            yield from connection.execute(STATEMENTS["list_not_indexed"], every)
        elif match is not None:
            indexed = {**filters, "match": match, "first": first, "indexed_no": segment.indexed_no}
            yield from connection.execute(_statement("list_indexed", segment.segment), indexed)
    yield from connection.execute(STATEMENTS["list_not_indexed"], {**filters, "after": first - 1, "end": end})


def _first_of(connection: sqlite3.Connection, query: Query) -> int:
    """The number below which every message is older than `since`: there is no need to look at them."""
    if query.since is None:
        return 0
    found = connection.execute(STATEMENTS["first_message_no_since"], {"since": query.since}).fetchone()[0]
    return _END if found is None else int(found)


def _segments_of(connection: sqlite3.Connection) -> list[_Segment]:
    """The segments, newest first; none where the index is missing or damaged."""
    try:
        return [_Segment(*row) for row in connection.execute(STATEMENTS["list_segments"])]
    except sqlite3.Error:
        return []


def _grams_asked(folded: str) -> list[str]:
    """The trigrams that what is looked for has, or enough of them; none where it is shorter."""
    grams = list(dict.fromkeys(folded[start : start + _GRAM] for start in range(len(folded) - _GRAM + 1)))
    step = max(1, -(-len(grams) // _GRAMS_ASKED))
    return [_quoted(gram) for gram in grams[::step]]


def _match(
    connection: sqlite3.Connection, segment: _Segment, *, owner: str | None, folded: str, grams: list[str]
) -> str | None:
    """What FTS5 finds the candidates of a segment by: None where it has none, "" where they are all its messages."""
    conditions = list(grams)
    if owner is not None:
        if connection.execute(_statement("list_of_term", segment.segment), {"term": owner}).fetchone() is None:
            return None
        conditions.append(owner)
    if not grams:
        span = {"first": folded, "end": folded + _LAST_CHARACTER * _GRAM, "limit": _RUNS_ASKED + 1}
        runs = [run for (run,) in connection.execute(_statement("list_vocabulary", segment.segment), span)]
        if not runs:
            return None
        if len(runs) <= _RUNS_ASKED:
            conditions.append("(" + " OR ".join(map(_quoted, runs)) + ")")
    return " AND ".join(conditions)


def _quoted(term: str) -> str:
    return '"' + term.replace('"', '""') + '"'


def _snippet(content: str, position: int, length: int) -> str:
    """The hit with some text around it. Position and length count case-folded characters, which may be more."""
    start, end = position, position + length
    if len(content.casefold()) != len(content):
        start, end = _unfolded(content, position, length)
    before, after = max(0, start - 60), min(len(content), end + 100)
    head = ("…" if before else "") + content[before:start]
    tail = content[end:after] + ("…" if after < len(content) else "")
    return f"{head}**{content[start:end]}**{tail}"


def _unfolded(content: str, position: int, length: int) -> tuple[int, int]:
    at, start = 0, None
    for index, character in enumerate(content):
        if at >= position + length:
            return start or 0, index
        at += len(character.casefold())
        if start is None and at > position:
            start = index
    return start or 0, len(content)


@contextmanager
def _limited(connection: sqlite3.Connection, seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _TICK_INSTRUCTIONS)
    try:
        yield
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise TimeOutError from exc
        raise
    finally:
        connection.set_progress_handler(None, 0)


# --- indexing


class Index:
    """The index, for the one process that fills it. Raises BlockingIOError where another does."""

    def __init__(self, database: Path) -> None:
        path = index_path(database)
        self._lock = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._messages = connect(database)
            self._messages.execute("PRAGMA query_only = ON")
            self._connection = _open_index(path)
        except BaseException:
            os.close(self._lock)
            raise
        self._seen: int | None = None
        self.clean()

    def close(self) -> None:
        """Leave the index to others."""
        self._connection.close()
        self._messages.close()
        os.close(self._lock)

    def backlog(self) -> int:
        """About how many messages wait to be indexed."""
        newest = self._newest_below(_END) or 0
        segments = _segments_of(self._connection)
        return newest - segments[0].indexed_no if segments else newest

    def step(self) -> int:
        """Index some messages, of the newest segment first; how many."""
        version = self._messages.execute("PRAGMA data_version").fetchone()[0]
        if version == self._seen:
            return 0
        done = {segment.segment: segment.indexed_no for segment in _segments_of(self._connection)}
        end = _END
        while (newest := self._newest_below(end)) is not None:
            number = newest // SEGMENT
            after = done.get(number, number * SEGMENT - 1)
            if newest > after:
                return self._index(number, after=after)
            end = number * SEGMENT
        self._seen = version
        return 0

    def clean(self) -> int:
        """Drop the segments that hold mostly deleted messages, any of a deleted user, or those of another database;
        how many."""
        dropped = 0
        for segment in _segments_of(self._connection):
            if self._is_thin(segment) or self._is_foreign(segment) or self._holds_deleted_user(segment):
                self._drop(segment.segment)
                dropped += 1
        if dropped:
            self._seen = None
        return dropped

    def _index(self, segment: int, *, after: int) -> int:
        span = {"after": after, "end": (segment + 1) * SEGMENT, "limit": _BATCH}
        entries, size, last = [], 0, (after, "")
        for message_no, message_id, user_id, content in self._messages.execute(STATEMENTS["list_unindexed"], span):
            last = message_no, message_id
            entries.append({"message_no": message_no, "text": _folded(content) + _PADDING, "owner": _owner(user_id)})
            size += len(content)
            if size >= _BATCH_CHARACTERS:
                break
        with transaction(self._connection):
            self._connection.execute(_statement("create_segment", segment))
            self._connection.execute(_statement("create_vocabulary", segment))
            self._connection.executemany(_statement("insert_grams", segment), entries)
            self._connection.execute(
                STATEMENTS["upsert_segment"],
                {"segment": segment, "indexed_no": last[0], "indexed_id": last[1], "documents": len(entries)},
            )
        return len(entries)

    def _drop(self, segment: int) -> None:
        with transaction(self._connection):
            self._connection.execute(_statement("drop_vocabulary", segment))
            self._connection.execute(_statement("drop_segment", segment))
            self._connection.execute(STATEMENTS["forget_segment"], {"segment": segment})
        free_pages.give_back(self._connection, kept=0, seconds=_GIVE_BACK_SECONDS)

    def _newest_below(self, end: int) -> int | None:
        number: int | None = self._messages.execute(STATEMENTS["newest_message_no"], {"end": end}).fetchone()[0]
        return number

    def _is_thin(self, segment: _Segment) -> bool:
        """Whether most of its messages are deleted, as far as a sample tells."""
        size = segment.indexed_no - segment.first + 1
        span = {"first": segment.first, "last": segment.indexed_no, "step": max(1, size // _SAMPLE)}
        sampled, living = self._messages.execute(STATEMENTS["sample_messages"], span).fetchone()
        return bool(2 * living * size < segment.documents * sampled)

    def _is_foreign(self, segment: _Segment) -> bool:
        row = self._messages.execute(STATEMENTS["message_id_of"], {"message_no": segment.indexed_no}).fetchone()
        return row is not None and row[0] != segment.indexed_id

    def _holds_deleted_user(self, segment: _Segment) -> bool:
        """Whether anything is left of a user who was deleted, and perhaps made anew."""
        match = _statement("list_of_term", segment.segment)
        for (user_digest,) in self._messages.execute(STATEMENTS["list_deleted_users"]).fetchall():
            for (message_no,) in self._connection.execute(match, {"term": _quoted(_owner_of(user_digest))}):
                if self._messages.execute(STATEMENTS["message_id_of"], {"message_no": message_no}).fetchone() is None:
                    return True
        return False


def _open_index(path: Path) -> sqlite3.Connection:
    """The index file, made anew where it is damaged or of another version."""
    try:
        return _prepared(path)
    except sqlite3.DatabaseError as exc:
        logger.warning("the search index is made anew: %s", exc)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return _prepared(path)


def _prepared(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA secure_delete = ON").fetchall()
        # What a power cut takes of it is indexed again. https://sqlite.org/pragma.html#pragma_synchronous
        connection.execute("PRAGMA synchronous = NORMAL")
        _refuse_other_version(connection)
        with transaction(connection):
            connection.execute(STATEMENTS["create_segments"])
            connection.execute(f"PRAGMA user_version = {_SCHEMA}")
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_other_version(connection: sqlite3.Connection) -> None:
    version = _version_of(connection, "main")
    if version not in (0, _SCHEMA):
        raise sqlite3.DatabaseError(f"it has version {version}")


def _version_of(connection: sqlite3.Connection, schema: str) -> int:
    version: int = connection.execute(f"PRAGMA {schema}.user_version").fetchone()[0]
    return version


def _folded(text: str) -> str:
    """Text without case; FTS5 would not read on after a NUL."""
    return text.casefold().replace("\0", _PADDING[0])


@lru_cache(maxsize=1024)
def _owner(user_id: str) -> str:
    return _owner_of(tombstones.digest("user", user_id))


def _owner_of(user_digest: bytes) -> str:
    """What stands for a user in the index: few users share it, and whose message a candidate is is looked at."""
    return "".join(chr(_PRIVATE_USE + code) for code in struct.unpack(">3H", user_digest[:6]))


def _statement(name: str, segment: int) -> str:
    return STATEMENTS[name].replace("{segment}", str(int(segment)))
