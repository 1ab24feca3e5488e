"""What the server may leave out of a search without an index."""

import sys

import pytest

from proxy.search import scan


@pytest.mark.parametrize(
    ("text", "run"),
    (
        ("Hello", None),
        ("Straße 12", " 12"),
        ("数据库", "数据库"),
        ("a数据b库", "数据"),
        ("e\u0301", None),
        ("ŉ", None),
        ("\u02bc", None),
        ("%_\\", "%_\\"),
    ),
)
def test_run_is_what_every_case_of_a_text_has(text: str, run: str | None) -> None:
    assert scan.unchanged_run(text) == run


def test_no_character_has_a_case_that_is_not_known() -> None:
    assert not any(chr(code).casefold() != chr(code) for code in range(scan._CASES_END, sys.maxunicode + 1))
