"""A text that comes in pieces is looked through as if it came whole."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.search import rank

ALPHABET = st.sampled_from(["a", "b", "A", "ß", "ﬁ", "İ", " ", "数", "據", "é", "😀"])


def matched(pieces: list[str], needle: str) -> tuple[float, str, int] | None:
    match = rank.look_through(pieces, needle.casefold())
    return None if match is None else (round(match.score, 9), match.snippet, match.length)


@given(
    st.text(ALPHABET, max_size=900),
    st.lists(st.integers(0, 900), max_size=6),
    st.text(ALPHABET, min_size=1, max_size=3),
)
def test_pieces_are_as_good_as_the_whole(text: str, cuts: list[int], needle: str) -> None:
    needle = needle * 2  # seldom enough that the search does not end early
    if text.casefold().count(needle.casefold()) >= 32:
        return
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    assert matched(pieces, needle) == matched([text], needle)


@pytest.mark.parametrize("before", (0, 1, 59, 60, 299, 300, 301, 512))
def test_what_lies_across_two_pieces_is_found(before: int) -> None:
    text = "x" * before + " straße " + "y" * 512
    for cut in range(len(text)):
        assert matched([text[:cut], text[cut:]], "STRASSE") == matched([text], "STRASSE")


def test_no_more_is_read_than_changes_the_score() -> None:
    pieces = iter(["needle " * 100] * 9)
    assert rank.look_through(pieces, "needle") is not None
    assert len(list(pieces)) == 7  # one is read ahead, to know the last
