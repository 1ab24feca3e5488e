"""Serves the page's own script, style and icon. Nothing is loaded from other sites."""

from email.utils import formatdate
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from proxy.services import State

_TYPES = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_FILES = {name: (Path(__file__).parent / "static" / name).read_bytes() for name in _TYPES}
_DIGESTS = {name: sha256(content).hexdigest()[:16] for name, content in _FILES.items()}


def static(name: str) -> str:
    """The URL of a file. It changes with the content, so that browsers can cache it forever."""
    return f"/ui/static/{name}?v={_DIGESTS[name]}"


async def get_static(request: Request[State]) -> Response:
    """Serves one of the files."""
    name = request.path_params["name"]
    if name not in _FILES:
        return Response(status_code=404)
    headers = {
        "cache-control": "public, max-age=31536000, immutable",
        "x-content-type-options": "nosniff",
        "cross-origin-resource-policy": "same-origin",
        "content-security-policy": "default-src 'none'",
        "date": formatdate(usegmt=True),
    }
    return Response(_FILES[name], media_type=_TYPES[name], headers=headers)
