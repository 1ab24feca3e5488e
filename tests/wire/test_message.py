"""Titles: the first user message, cut at a word, and never inside what readers see as one character."""

import tracemalloc

import pytest

from proxy.wire.message import DEFAULT_TITLE, TITLE_LENGTH, title_of

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
FLAG = "\U0001f1e9\U0001f1ea"
HEART = "\u2764\ufe0f"
HAND = "\U0001f44b\U0001f3fd"
ACCENT = "e\u0301"


def title(text: str) -> str:
    return title_of([{"role": "user", "content": text}])


def test_a_short_message_is_the_title() -> None:
    assert title("  Plan a\nday ") == "Plan a day"
    assert title("") == DEFAULT_TITLE


def test_a_long_message_is_cut_at_a_word() -> None:
    assert title("word " * 40) == " ".join(["word"] * 16)


@pytest.mark.parametrize("character", (FAMILY, FLAG, HEART, HAND, ACCENT))
@pytest.mark.parametrize("before", range(TITLE_LENGTH - 6, TITLE_LENGTH + 1))
def test_it_is_not_cut_inside_a_character(character: str, before: int) -> None:
    cut = title("中" * before + character * 4 + "中" * 20)
    assert len(cut) <= TITLE_LENGTH
    rest = cut[before:]
    assert rest == character * (len(rest) // len(character))


def test_a_message_of_flags_is_cut_between_two() -> None:
    assert title(FLAG * 100) == FLAG * (TITLE_LENGTH // 2)
    assert title("中" + FLAG * 100) == "中" + FLAG * ((TITLE_LENGTH - 1) // 2)


@pytest.mark.parametrize("before", ("", " " * 100_000))
def test_only_the_beginning_of_a_long_message_is_split_into_words(before: str) -> None:
    said = before + "ab " * 1_000_000
    tracemalloc.start()
    try:
        assert title(said) == " ".join(["ab"] * 27)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(said)
