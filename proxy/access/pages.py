"""Which requests are for the history page, which has a login of its own. Pure."""

from starlette.types import Scope

from proxy.wire.headers import value_of


def is_page(scope: Scope) -> bool:
    """Whether a request is for the history page, or is a browser's that will be led there."""
    path: str = scope["path"]
    return path == "/ui" or path.startswith("/ui/") or (path == "/" and is_browser(scope))


def is_browser(scope: Scope) -> bool:
    """Whether the caller wants a page to look at."""
    return scope["method"] in ("GET", "HEAD") and b"text/html" in (value_of(scope["headers"], b"accept") or b"")
