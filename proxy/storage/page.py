"""Which part of a list is asked for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """`after` is the id of the last item of the page before."""

    limit: int
    offset: int = 0
    after: str | None = None
