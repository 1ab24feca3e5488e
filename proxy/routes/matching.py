"""How a path finds its route: exactly, and with a percent-encoded slash as part of an id.

Starlette's patterns end in `$`, which also matches before a newline at the end, and they are matched with the decoded
path, in which the session `a/messages` looks like the messages of the session `a`.
"""

import re
from collections.abc import Sequence
from urllib.parse import unquote

from starlette.convertors import Convertor, PathConvertor
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

_ENCODED_SLASH = re.compile(rb"%2f", re.IGNORECASE)
_IN_ID = "\udc2f"  # a lone surrogate: no decoded path holds one


class _IdConvertor(Convertor[str]):
    """Ids that callers make up hold any character: slashes, and newlines, which Starlette's `.*` does not match."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value.replace(_IN_ID, "/")

    def to_string(self, value: str) -> str:
        return value


def exact(routes: Sequence[Route]) -> list[Route]:
    """The routes, each matching to the very end of a path, with `{name:path}` for an id of any characters."""
    for route in routes:
        pattern = route.path_regex.pattern.removesuffix("$").replace(
            f">{PathConvertor.regex})", f">{_IdConvertor.regex})"
        )
        route.path_regex = re.compile(pattern + r"\Z")
        for name, convertor in route.param_convertors.items():
            if isinstance(convertor, PathConvertor):
                route.param_convertors[name] = _IdConvertor()
    return list(routes)


class EncodedSlashes:
    """Routes what is inside by the path with its percent-encoded slashes kept apart from the plain ones."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        if scope["type"] == "http" and _ENCODED_SLASH.search(scope["raw_path"]):
            parts = _ENCODED_SLASH.split(scope["raw_path"])
            scope = {**scope, "path": _IN_ID.join(unquote(part.decode("ascii")) for part in parts)}
        await self._app(scope, receive, send)
