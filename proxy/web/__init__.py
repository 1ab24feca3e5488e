"""The history page: what was said, for people with a browser. Server-rendered; complete without JavaScript."""

from importlib.util import find_spec

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from proxy.errors import NotFoundError
from proxy.services import State
from proxy.settings import Settings

_INSTALL = "The history page needs a few libraries more: pip install 'stellarchat[web]', and start the server again.\n"


def web_routes(settings: Settings) -> list[Route]:
    """The routes of the page, none where it is off. Its libraries are imported here, where they are installed."""
    if not settings.web:
        return []
    root = Route("/", _to_the_page, methods=["GET"])
    if any(find_spec(name) is None for name in ("jinja2", "markupsafe")):
        return [root, Route("/ui", _how_to_install), Route("/ui/{path:path}", _how_to_install)]
    from proxy.web.site import site_routes

    return [root, *site_routes(settings)]


async def _to_the_page(request: Request[State]) -> Response:
    """A browser is led to the page; a program is told that there is nothing here, as before."""
    if "text/html" not in request.headers.get("accept", ""):
        raise NotFoundError("There is no route /.")
    return RedirectResponse("/ui", status_code=302, headers={"Cache-Control": "no-store", "Vary": "Accept"})


async def _how_to_install(_request: Request[State]) -> Response:
    return PlainTextResponse(_INSTALL, status_code=501)
