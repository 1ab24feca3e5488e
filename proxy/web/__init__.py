"""The history page: a server-rendered HTML view of the history that works fully without JavaScript."""

from importlib.util import find_spec

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.access.pages import ENTRANCES, is_browser
from proxy.services import State
from proxy.settings import Settings
from proxy.web.markdown_process import MarkdownProcess

_INSTALL = "The history page needs additional libraries: pip install 'stellarchat[web]', then restart the server.\n"


def web_routes(settings: Settings, markdown: MarkdownProcess, *, otherwise: ASGIApp) -> list[Route]:
    """The page's routes; none if it is disabled.

    `otherwise` handles requests for the entrances that do not come from a browser.
    """
    if not settings.web:
        return []
    roots = [Route(path, _Root(otherwise)) for path in ENTRANCES]
    # Its libraries are imported only here, and only if they are installed.
    if any(find_spec(name) is None for name in ("jinja2", "markdown_it", "nh3", "pygments")):
        return [*roots, Route("/ui", _how_to_install), Route("/ui/{path:path}", _how_to_install)]
    from proxy.web.site import site_routes

    return [*roots, *site_routes(markdown)]


class _Root:
    """Redirects a browser from an entrance to the page; other clients' requests are handled without the page."""

    def __init__(self, otherwise: ASGIApp) -> None:
        self._otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        to_page = RedirectResponse("/ui", status_code=302, headers={"Cache-Control": "no-store", "Vary": "Accept"})
        await (to_page if is_browser(scope) else self._otherwise)(scope, receive, send)


async def _how_to_install(_request: Request[State]) -> Response:
    return PlainTextResponse(_INSTALL, status_code=501)
