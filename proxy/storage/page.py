"""Which part of a list was requested: limit, offset, and the id to continue after."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """`after` is the id of the previous page's last item."""

    limit: int
    offset: int = 0
    after: str | None = None
