"""Stricter path matching than Starlette's: to the exact end, and with percent-encoded slashes inside ids.

Starlette's patterns end with `$`, which also matches before a trailing newline. It matches the decoded path, in which
the session `a/messages` looks like the messages of session `a`.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import unquote

from starlette.convertors import Convertor, PathConvertor
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

# The ASGI path is already decoded, where an id's slash looks like a separator: only the raw path tells.
_ENCODED_SLASH = re.compile(rb"%2f", re.IGNORECASE)
_IN_ID = "\udc2f"  # a lone surrogate, which no decoded path contains


class _IdConvertor(Convertor[str]):
    """Client-defined ids may contain any character: slashes, and newlines, which Starlette's `.*` does not match."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value.replace(_IN_ID, "/")

    def to_string(self, value: str) -> str:
        return value


def exact(routes: Sequence[Route]) -> list[Route]:
    """The routes with exact end matching, and `{name:path}` for ids with any characters."""
    for route in routes:
        # The modules' routes are the same objects in each application, and are changed once.
        pattern = route.path_regex.pattern.removesuffix(r"\Z").removesuffix("$")
        pattern = pattern.replace(f">{PathConvertor.regex})", f">{_IdConvertor.regex})")
        route.path_regex = _compiled(pattern + r"\Z")
        # Ids of one segment too: an encoded slash in them must not stay a surrogate, which no database takes.
        route.param_convertors = dict.fromkeys(route.param_convertors, _IdConvertor())
    return list(routes)


@lru_cache(maxsize=256)  # `re` has a cache, too, which other patterns may have filled
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


class EncodedSlashes:
    """Middleware that routes by a path in which encoded slashes differ from plain ones."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _ENCODED_SLASH.search(scope["raw_path"]):
            parts = _ENCODED_SLASH.split(scope["raw_path"])
            scope = {**scope, "path": _IN_ID.join(unquote(part.decode("ascii")) for part in parts)}
        await self._app(scope, receive, send)
