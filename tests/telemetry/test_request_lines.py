"""A chat's line on the console: colours only where they are wanted, and no control characters of a caller."""

import io
from typing import Any

import pytest

from proxy.telemetry.request_lines import chat_line, shows_colours
from tests.stored import choice, exchange, outcome, user


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "out", "expected"),
    (
        ({"TERM": "xterm"}, _Terminal(), True),
        ({"TERM": "xterm", "NO_COLOR": ""}, _Terminal(), True),  # no-color.org: only if it is not empty
        ({"TERM": "xterm", "NO_COLOR": "1"}, _Terminal(), False),
        ({"TERM": "xterm", "NO_COLOR": "0"}, _Terminal(), False),
        ({"TERM": "dumb"}, _Terminal(), False),
        ({"TERM": "xterm"}, io.StringIO(), False),
    ),
)
def test_colours_are_for_terminals_of_people_who_want_them(
    environment: dict[str, str], out: Any, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert shows_colours(out) is expected


@pytest.mark.parametrize("name", ("a\x1b[31mred", "one\ntwo", "bell\a", "\u202emirrored", "c1\x9b2J", "x" * 5000))
def test_a_model_s_name_is_one_short_line_of_plain_text(name: str) -> None:
    line = chat_line(exchange([user("hello")], model=name), outcome(choice("hi")), None)
    assert line.isprintable()
    assert len(line) < 200
