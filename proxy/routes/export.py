"""`GET /v1/sessions/{id}/export`: downloads one session as a file."""

from email.utils import formatdate
from functools import partial

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from proxy.access.caller import sees_upstreams
from proxy.errors import InvalidRequestError
from proxy.history import branches
from proxy.maintenance import export_file
from proxy.maintenance.export import FORMATS, MEDIA_TYPES, Format, Scope
from proxy.routes import parameters
from proxy.routes.parameters import caller_of, services_of, session_id_of, visible_user
from proxy.routes.resource import Resource
from proxy.services import State


async def export_session(request: Request[State]) -> Response:
    """Streams the session in the requested format."""
    services = services_of(request)
    format_ = _format(request)
    find = partial(branches.find_session, id_=session_id_of(request), user_id=visible_user(request))
    session = await services.read(find)
    scope = Scope(
        session_id=session.session_id,
        completed_only=parameters.flag(request, "completed_only"),
        names_upstreams=sees_upstreams(caller_of(request)),
    )
    file = await services.exports.written(
        session.user_id, services.database.connect, scope, format_, folder=services.settings.state_path
    )
    headers = {
        "date": formatdate(usegmt=True),
        "content-disposition": f'attachment; filename="{session.session_id}.{export_file.suffix(format_)}"',
    }
    return StreamingResponse(services.exports.pieces(file), media_type=MEDIA_TYPES[format_], headers=headers)


def _format(request: Request[State]) -> Format:
    asked = request.query_params.get("format", "jsonl")
    for format_ in FORMATS:
        if format_ == asked:
            return format_
    raise InvalidRequestError(f"format must be one of {', '.join(FORMATS)}.", param="format")


routes = [Route("/v1/sessions/{session_id:path}/export", Resource(GET=export_session))]
