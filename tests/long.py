"""Cases that are many: every test run takes some of them, one with `STELLARCHAT_TEST_LONG=1` takes all."""

import os
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

IS_LONG = bool(os.environ.get("STELLARCHAT_TEST_LONG"))


def some_of(cases: Iterable[T], *, every: int) -> list[T]:
    """Each `every`th case, or all of them in a long run."""
    return list(cases)[:: 1 if IS_LONG else every]


def examples(count: int) -> int:
    """How many random examples are tried: a third of `count`, or all in a long run."""
    return count if IS_LONG else count // 3
