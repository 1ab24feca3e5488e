"""Recognises requests for the history page, which has its own login. Pure."""

from starlette.types import Scope

from proxy.wire.headers import value_of

# Paths that people type or open from the terminal; each redirects a browser to the page.
ENTRANCES = ("/", "/v1", "/v1/", "/docs")


def is_page(scope: Scope) -> bool:
    """Whether a request is for the history page, or comes from a browser that will be redirected there."""
    path: str = scope["path"]
    if path.startswith("/ui"):
        return path == "/ui" or path.startswith("/ui/")
    return path in ENTRANCES and is_browser(scope)


def is_browser(scope: Scope) -> bool:
    """Whether the caller is a browser that accepts HTML."""
    return scope["method"] in ("GET", "HEAD") and b"text/html" in (value_of(scope["headers"], b"accept") or b"")
