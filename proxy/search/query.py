"""Substring search in messages on SQLite: any script, case-insensitive, any query length.

The index only yields candidates: each one is verified against its text, and messages not indexed yet are scanned. So
results are correct even if the index lags, is missing, or turns out to be damaged.

Hits are ranked by their own text, because FTS5 stores nothing here that bm25 could use: the newest hits are ordered by
score, all older ones by time. A score depends only on the message and the query, so pages are consistent and can be
shifted only by a new hit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from proxy.search import rank
from proxy.search.deadline import Deadline, TimeOutError
from proxy.search.rank import Match
from proxy.storage import queries, search_file
from proxy.storage.queries.sessions import Session
from proxy.storage.search_file import STATEMENTS, WHOLE_BYTES, Connection, Error, Segment, statement

QUERY_LENGTH_MAX = 1000  # characters: each trigram of the query may be looked up

Order = Literal["relevance", "newest"]
ORDERS: tuple[Order, ...] = get_args(Order)

# Length of the tokens of FTS5's trigram tokenizer: https://sqlite.org/fts5.html#the_trigram_tokenizer
_GRAM = 3
# A long query asks only for some of its trigrams, spread over its length: they only select candidates.
_GRAMS_ASKED = 24
# If more trigrams than this start with the query, scanning is faster: most messages contain one of them anyway.
_RUNS_ASKED = 500
_LAST_CHARACTER = "\U0010ffff"
_END = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to search for. `text` is not empty; without a user, all users' messages are searched."""

    text: str
    user_id: str | None = None
    session_id: str | None = None
    role: str | None = None
    model: str | None = None
    since: str | None = None
    until: str | None = None


class Hit(NamedTuple):
    """A matching message, and the text around the match, marked with `**`."""

    message_no: int
    match: Match

    @property
    def snippet(self) -> str:
        """The text around the first match."""
        return self.match.snippet


class Found(NamedTuple):
    """A hit with its message's columns (without the text) and its session."""

    hit: Hit
    message: dict[str, Any]
    session: Session


# A message number, and its text: None if a filter excludes it, or its size in bytes if it is too large to read at once.
_Candidate = tuple[int, Any]


def search(
    database: Path, query: Query, *, limit: int, offset: int = 0, order: Order = "relevance", deadline: Deadline
) -> tuple[list[Found], bool]:
    """One page of hits, and whether there are more. Raises TimeOutError.

    Relevance: frequent matches, matches of whole words, and short texts score higher; equal scores are ordered newest
    first.
    """
    with search_file.opened(database) as connection:
        hits, has_more = find(connection, query, limit=limit, offset=offset, order=order, deadline=deadline)
        with search_file.interrupted_when(connection, lambda: deadline.is_over, TimeOutError):
            found = [each for hit in hits if (each := _found(connection, hit)) is not None]
    return found, has_more


def find(
    connection: Connection,
    query: Query,
    *,
    limit: int,
    offset: int = 0,
    order: Order = "relevance",
    deadline: Deadline,
) -> tuple[list[Hit], bool]:
    """The hits of a page, and whether there are more. Raises TimeOutError."""
    with search_file.interrupted_when(connection, lambda: deadline.is_over, TimeOutError):
        looked_at = _looked_at(connection, query, deadline)
        return rank.page_of(looked_at, by_score=order == "relevance", limit=limit, offset=offset)


def folded_text(text: str) -> str:
    """Case-folded text as it is indexed, without NUL: FTS5 stops reading there."""
    return text.casefold().replace("\0", "\x02")


def quoted(term: str) -> str:
    """Quotes a term for an FTS5 query."""
    return '"' + term.replace('"', '""') + '"'


def _found(connection: Connection, hit: Hit) -> Found | None:
    """The hit's columns; None if the message was deleted meanwhile."""
    cursor = connection.execute(STATEMENTS["get_hit"], {"message_no": hit.message_no})
    row = cursor.fetchone()
    if row is None:
        return None
    message = dict(zip((column[0] for column in cursor.description), row, strict=True))
    session = queries.sessions.get_session(connection, message.pop("session_id"))
    return None if session is None else Found(hit, message, session)


def _looked_at(connection: Connection, query: Query, deadline: Deadline) -> Iterator[Hit | None]:
    """Verifies every candidate, newest first; yields None for one that does not match."""
    needle = query.text.casefold()
    for message_no, content in _Candidates(connection, query):
        deadline.check()
        if content is None:
            yield None
            continue
        pieces = _pieces(connection, message_no, content, deadline)
        match = rank.look_through(pieces, needle)
        yield None if match is None else Hit(message_no, match)


def _pieces(connection: Connection, message_no: int, content: Any, deadline: Deadline) -> Iterator[str]:
    if isinstance(content, int):
        for piece in search_file.pieces_of(connection, message_no):
            deadline.check()
            yield piece
    else:  # we never store bytes here, but a damaged file may contain them
        yield search_file.text_of(content) if isinstance(content, bytes) else str(content)


class _Candidates:
    """Every message that may match, newest first; without its text if a filter excludes it."""

    def __init__(self, connection: Connection, query: Query) -> None:
        self._connection = connection
        self._query = query
        self._filters: dict[str, Any] = {name: getattr(query, name) for name in ("role", "model", "since", "until")}
        self._filters["whole"] = WHOLE_BYTES
        self._folded = folded_text(query.text)
        self._grams = _grams_asked(self._folded)

    def __iter__(self) -> Iterator[_Candidate]:
        session_id = self._query.session_id
        if session_id is not None:
            rows = self._connection.execute(STATEMENTS["list_in_session"], {**self._filters, "session_id": session_id})
            return iter(rows)
        self._filters["user_id"] = self._query.user_id
        return self._everywhere()

    def _everywhere(self) -> Iterator[_Candidate]:
        first, end = self._first(), _END
        for segment in search_file.segments_of(self._connection):
            yield from self._unindexed(after=max(segment.indexed_no, first - 1), end=end)
            # Messages between two segments are not indexed yet.
            end = segment.first
            yield from self._of_segment(segment, first)
        yield from self._unindexed(after=first - 1, end=end)

    def _first(self) -> int:
        """The first message number that can be newer than `since`."""
        since = self._query.since
        if since is None:
            return 0
        found = self._connection.execute(STATEMENTS["first_message_no_since"], {"since": since}).fetchone()[0]
        return _END if found is None else int(found)

    def _unindexed(self, *, after: int, end: int) -> Iterator[_Candidate]:
        span = {**self._filters, "after": after, "end": end}
        yield from self._connection.execute(STATEMENTS["list_not_indexed"], span)

    def _of_segment(self, segment: Segment, first: int) -> Iterator[_Candidate]:
        """The candidates from the index; if it turns out to be damaged, all remaining messages of the segment."""
        end = segment.indexed_no + 1
        try:
            for candidate in self._indexed(segment, first):
                yield candidate
                end = candidate[0]
        except Error as exc:
            if search_file.is_interrupt(exc):
                raise
            search_file.mark_damaged_by(self._connection, exc)
            yield from self._unindexed(after=max(segment.first, first) - 1, end=end)

    def _indexed(self, segment: Segment, first: int) -> Iterator[_Candidate]:
        match = self._match(segment)
        if match == "":
            yield from self._unindexed(after=max(segment.first, first) - 1, end=segment.indexed_no + 1)
        elif match is not None:
            span = {**self._filters, "match": match, "first": first, "indexed_no": segment.indexed_no}
            yield from self._connection.execute(statement("list_indexed", segment.segment), span)

    def _match(self, segment: Segment) -> str | None:
        """The FTS5 query for a segment's candidates. None: no candidates; "": all messages."""
        conditions = list(self._grams)
        if self._query.user_id is not None:
            owner = quoted(search_file.owner(self._query.user_id))
            if not self._connection.execute(statement("list_of_term", segment.segment), {"term": owner}).fetchone():
                return None
            conditions.append(owner)
        if not self._grams:
            span = {"first": self._folded, "end": self._folded + _LAST_CHARACTER * _GRAM, "limit": _RUNS_ASKED + 1}
            runs = [run for (run,) in self._connection.execute(statement("list_vocabulary", segment.segment), span)]
            if not runs:
                return None
            if len(runs) <= _RUNS_ASKED:
                conditions.append("(" + " OR ".join(map(quoted, runs)) + ")")
        return " AND ".join(conditions)


def _grams_asked(folded: str) -> list[str]:
    """The query's trigrams, or enough of them; [] if it is shorter than three characters."""
    grams = list(dict.fromkeys(folded[start : start + _GRAM] for start in range(len(folded) - _GRAM + 1)))
    step = max(1, -(-len(grams) // _GRAMS_ASKED))
    return [quoted(gram) for gram in grams[::step]]
