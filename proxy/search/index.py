"""Fills the search index in the background. The index is derived data in a separate file, so no chat waits for it.

Messages are indexed as FTS5 trigrams of their case-folded text; indexing words would require word boundaries, which
Chinese and Thai do not mark. A query of three or more characters is the set of its trigrams. FTS5 alone cannot find
shorter strings, but most Chinese words have two characters: such a query becomes any trigram that starts with it. For
that purpose two padding characters follow every message. FTS5 stores only which messages contain a trigram. The user is
indexed as one more trigram, which limits a search to that user's messages.

The index consists of segments, each for a range of message numbers, which are never reused. A segment is dropped and
rebuilt in two cases: most of its messages were deleted (so that retention shrinks the index, too), or one of its
messages belonged to a deleted user (the text must not remain).
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxy.search.query import folded_text, quoted
from proxy.storage import free_pages, search_file
from proxy.storage.search_file import STATEMENTS, WHOLE_BYTES, Segment, statement
from proxy.storage.sqlite import connect_existing

# Messages sampled per segment to estimate how many are left: each one may be a disk read.
_SAMPLE = 256
# Follows every message, so that its last characters also start a trigram.
_PADDING = "\x02" * 2
# Larger transactions and fewer grams took indexing from 102 to 68 us a chat (measured).
_BATCH = 400
_BATCH_BYTES = 2**19
_END = 2**63 - 1
_GIVE_BACK_SECONDS = 5.0  # after a segment is dropped; the remaining pages are freed with the next one


class Index:
    """The index, opened by the one process that fills it. Raises BlockingIOError if another process does."""

    def __init__(self, database: Path) -> None:
        self._path = search_file.index_path(database)
        self._lock = os.open(f"{self._path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._messages = connect_existing(database)
        except BaseException:
            os.close(self._lock)
            raise
        try:
            self._messages.execute("PRAGMA query_only = ON")
            self._messages.text_factory = search_file.text_of
            self._connection = search_file.open_index(self._path)
        except BaseException:
            self._messages.close()
            os.close(self._lock)
            raise
        self._seen: int | None = None

    def close(self) -> None:
        """Releases the index to other processes."""
        try:
            self._connection.close()
            self._messages.close()
        finally:
            os.close(self._lock)

    def rebuild(self) -> None:
        """Deletes the index and starts again."""
        self._connection.close()
        search_file.remove(self._path)
        self._connection = search_file.open_index(self._path)
        self._seen = None

    def backlog(self) -> int:
        """Approximate number of messages not indexed yet."""
        newest = self._newest_below(_END) or 0
        segments = search_file.segments_of(self._connection)
        return newest - segments[0].indexed_no if segments else newest

    def step(self) -> int:
        """Indexes a batch of messages of the newest segment; returns how many. Rebuilds a damaged index."""
        if search_file.is_marked_damaged(self._path):
            self.rebuild()
        version = self._messages.execute("PRAGMA data_version").fetchone()[0]
        if version == self._seen:
            return 0
        done = {segment.segment: segment.indexed_no for segment in search_file.segments_of(self._connection)}
        end = _END
        while (newest := self._newest_below(end)) is not None:
            number = newest // search_file.SEGMENT
            after = done.get(number, number * search_file.SEGMENT - 1)
            if newest > after:
                return self._index(number, after=after)
            end = number * search_file.SEGMENT
        self._seen = version
        return 0

    def clean(self) -> int:
        """Drops segments with mostly deleted messages, with messages of a deleted user, or of another database; returns
        how many."""
        dropped = 0
        for segment in search_file.segments_of(self._connection):
            if self._is_thin(segment) or self._is_foreign(segment) or self._holds_deleted_user(segment):
                self._drop(segment.segment)
                dropped += 1
        if dropped:
            self._seen = None
        return dropped

    def _index(self, segment: int, *, after: int) -> int:
        span = {"after": after, "end": (segment + 1) * search_file.SEGMENT, "limit": _BATCH, "whole": WHOLE_BYTES}
        entries, size, last = [], 0, (after, "")
        for message_no, message_id, user_id, content in self._messages.execute(STATEMENTS["list_unindexed"], span):
            last = message_no, message_id
            text = self._indexed_text(message_no, content)
            entries.append({"message_no": message_no, "text": text, "owner": search_file.owner(user_id)})
            size += len(text)
            if size >= _BATCH_BYTES:
                break
        with self._connection.transaction():
            self._connection.execute(statement("create_segment", segment))
            self._connection.execute(statement("create_vocabulary", segment))
            self._connection.executemany(statement("insert_grams", segment), entries)
            self._connection.execute(
                STATEMENTS["upsert_segment"],
                {"segment": segment, "indexed_no": last[0], "indexed_id": last[1], "documents": len(entries)},
            )
        return len(entries)

    def _indexed_text(self, message_no: int, content: Any) -> bytes:
        """The text to index. A long message is case-folded in pieces, releasing the GIL in between."""
        return b"".join(folded_text(piece).encode() for piece in self._pieces(message_no, content)) + _PADDING.encode()

    def _pieces(self, message_no: int, content: Any) -> Iterator[str]:
        if isinstance(content, int):
            yield from search_file.pieces_of(self._messages, message_no)
        elif isinstance(content, bytes):  # we never store bytes here, but a damaged file may contain them
            yield search_file.text_of(content)
        elif content is not None:
            yield str(content)

    def _drop(self, segment: int) -> None:
        with self._connection.transaction():
            self._connection.execute(statement("drop_vocabulary", segment))
            self._connection.execute(statement("drop_segment", segment))
            self._connection.execute(STATEMENTS["forget_segment"], {"segment": segment})
        free_pages.give_back(self._connection, kept=0, seconds=_GIVE_BACK_SECONDS)

    def _newest_below(self, end: int) -> int | None:
        number: int | None = self._messages.execute(STATEMENTS["newest_message_no"], {"end": end}).fetchone()[0]
        return number

    def _is_thin(self, segment: Segment) -> bool:
        """Whether most of its messages are deleted, estimated from a sample."""
        size = segment.indexed_no - segment.first + 1
        span = {"first": segment.first, "last": segment.indexed_no, "step": max(1, size // _SAMPLE)}
        sampled, living = self._messages.execute(STATEMENTS["sample_messages"], span).fetchone()
        return bool(2 * living * size < segment.documents * sampled)

    def _is_foreign(self, segment: Segment) -> bool:
        row = self._messages.execute(STATEMENTS["message_id_of"], {"message_no": segment.indexed_no}).fetchone()
        return row is not None and row[0] != segment.indexed_id

    def _holds_deleted_user(self, segment: Segment) -> bool:
        """Whether it contains messages of a user who was deleted, and possibly created again."""
        match = statement("list_of_term", segment.segment)
        for (user_digest,) in self._messages.execute(STATEMENTS["list_deleted_users"]).fetchall():
            term = quoted(search_file.owner_of(user_digest))
            for (message_no,) in self._connection.execute(match, {"term": term}):
                if self._messages.execute(STATEMENTS["message_id_of"], {"message_no": message_no}).fetchone() is None:
                    return True
        return False
