"""Counting values without parsing."""

import json

from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.value_count import ValueCount

_JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='a"\\,[{}]é\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='a"\\,[{'), inner),
    max_leaves=20,
)


def separators_of(value: object) -> int:
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return 1 + max(0, len(value) - 1) + sum(map(separators_of, items))
    return 0


@given(value=_JSON, size=st.integers(1, 9), is_ascii=st.booleans())
def test_what_stands_in_strings_does_not_count_however_the_text_is_cut(
    value: object, size: int, is_ascii: bool
) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii).encode()
    values = ValueCount()
    for start in range(0, len(text), size):
        values.feed(text[start : start + size])
    assert values.count == separators_of(value)


def test_a_string_that_never_ends_counts_nothing() -> None:
    values = ValueCount()
    for piece in (b'["', b"\\" * 7, b'",[,', b"," * 1000):
        values.feed(piece)
    assert values.count == 1
