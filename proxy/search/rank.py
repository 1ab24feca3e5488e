"""Verifies and scores a candidate's text, and ranks the newest hits. Pure.

Texts are processed in pieces, so that a huge message neither fills memory nor holds the GIL for long.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter
from typing import NamedTuple, Protocol, TypeVar

# Only the newest hits are ranked. The group ends at the first limit reached: number of hits, amount of text, or
# candidates examined since the newest hit.
RANKED_MAX = 1000
# Both limits bound the time that ranking takes: the first for long messages, the second for rare hits.
RANKED_CHARACTERS_MAX = 2**22
RANKED_CANDIDATES_MAX = 2**15

# BM25 parameters. The query is the only term, and the average length is a constant: a real average would change with
# every message, and with it the order of pages.
_SATURATION = 1.2
_LENGTH_SHARE = 0.75
_TYPICAL_LENGTH = 1000
# Weight of a match inside a word ("cat" in "location") relative to a whole word.
_PART_OF_WORD = 0.1
_OCCURRENCES_MAX = 32  # per message; further matches hardly change the score

_SNIPPET_BEFORE = 60  # characters
_SNIPPET_AFTER = 100
_FOLDED_MAX = 3  # one character may become up to this many when case-folded

# Two adjacent characters of one word. Thai to Myanmar, Khmer, Chinese and Japanese are excluded: they use no spaces.
_WITHIN_WORD = re.compile(
    r"[^\W\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff]{2}"
)


class Match(NamedTuple):
    """A text's score from 0 to 1, and the text around its first whole-word match."""

    score: float
    snippet: str
    length: int  # case-folded characters examined


class _Scored(Protocol):
    @property
    def match(self) -> Match: ...


Found = TypeVar("Found", bound=_Scored)


def look_through(pieces: Iterable[str], needle: str) -> Match | None:
    """Finds a case-folded needle in a text; None if absent. Stops when more text could hardly change the score."""
    text = _Text(needle)
    for piece, is_last in _with_last(pieces):
        text.add(piece, is_last=is_last)
        if text.occurrences >= _OCCURRENCES_MAX:
            break
    return text.match()


def newest_ranked(looked_at: Iterator[Found | None]) -> Iterator[Found]:
    """Given candidates newest first (None: no hit): the newest hits sorted by score, then the others unsorted."""
    newest: list[Found] = []
    characters = candidates = 0
    for found in looked_at:
        if found is not None:
            newest.append(found)
            characters += found.match.length
        candidates += bool(newest)
        if len(newest) >= RANKED_MAX or characters >= RANKED_CHARACTERS_MAX or candidates >= RANKED_CANDIDATES_MAX:
            break
    newest.sort(key=attrgetter("match.score"), reverse=True)  # stable sort: equal scores stay newest first
    yield from newest
    yield from filter(None, looked_at)


def page_of(looked_at: Iterator[Found | None], *, by_score: bool, limit: int, offset: int) -> tuple[list[Found], bool]:
    """One page of the hits among candidates newest first, and whether there are more."""
    hits = newest_ranked(looked_at) if by_score else filter(None, looked_at)
    page = list(islice(hits, offset, offset + limit + 1))
    return page[:limit], len(page) > limit


class _Text:
    """A text examined in windows; each window overlaps the end of the previous one."""

    def __init__(self, needle: str) -> None:
        self._needle = needle
        # The end of each window is left to the next one: a match needs this much context.
        self._margin = _FOLDED_MAX * _SNIPPET_AFTER
        self._tail_length = self._margin + len(needle) + _SNIPPET_BEFORE
        self._tail = ""
        self._unseen = 0  # case-folded characters at the end of the tail in which a match may still start
        self._weight = 0.0
        self._length = 0
        self._snippet: str | None = None
        self._snippet_is_of_word = False
        self.occurrences = 0

    def add(self, piece: str, *, is_last: bool) -> None:
        """Examines a piece together with the rest of the previous one."""
        window = self._tail + piece
        folded = window.casefold()
        overlap = len(self._tail.casefold())
        self._length += len(folded) - overlap
        limit = len(folded) if is_last else len(folded) - self._margin
        position = overlap - self._unseen
        while self.occurrences < _OCCURRENCES_MAX:
            start = folded.find(self._needle, position)
            end = start + len(self._needle)
            if start < 0 or end > limit:
                break
            self._take(window, folded, start, end)
            position = end
        self._unseen = len(folded) - max(position, limit - len(self._needle) + 1, 0)
        self._tail = window[-self._tail_length :]

    def match(self) -> Match | None:
        """The result so far."""
        if self._snippet is None:
            return None
        long = 1 - _LENGTH_SHARE + _LENGTH_SHARE * self._length / _TYPICAL_LENGTH
        return Match(self._weight / (self._weight + _SATURATION * long), self._snippet, self._length)

    def _take(self, window: str, folded: str, start: int, end: int) -> None:
        is_word = not (_is_within_word(folded, start) or _is_within_word(folded, end))
        self.occurrences += 1
        self._weight += 1 if is_word else _PART_OF_WORD
        if self._snippet is None or (is_word and not self._snippet_is_of_word):
            self._snippet = _snippet(window, start, end, is_same_length=len(folded) == len(window))
            self._snippet_is_of_word = is_word


def _with_last(pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Each piece, and whether it is the last one."""
    before: str | None = None
    for piece in pieces:
        if before is not None:
            yield before, False
        before = piece
    if before is not None:
        yield before, True


def _is_within_word(text: str, at: int) -> bool:
    return at > 0 and _WITHIN_WORD.match(text, at - 1) is not None


def _snippet(text: str, start: int, end: int, *, is_same_length: bool) -> str:
    """The match with surrounding text. Positions count case-folded characters, which may be more than the original."""
    if not is_same_length:
        start, end = _unfolded(text, start), _unfolded(text, end - 1) + 1
    before, after = max(0, start - _SNIPPET_BEFORE), min(len(text), end + _SNIPPET_AFTER)
    head = ("…" if before else "") + text[before:start]
    tail = text[end:after] + ("…" if after < len(text) else "")
    return f"{head}**{text[start:end]}**{tail}"


def _unfolded(text: str, at: int) -> int:
    """The original position for a position in the case-folded text, by bisection."""
    low, high, folded = 0, len(text), 0
    while high - low > 1:
        middle = (low + high) // 2
        length = len(text[low:middle].casefold())
        if folded + length <= at:
            low, folded = middle, folded + length
        else:
            high = middle
    return low
