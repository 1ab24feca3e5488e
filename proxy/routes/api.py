"""`/api/sessions`: sessions for clients that use page numbers; ids are in the key `id`."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.errors import InvalidRequestError, json_response
from proxy.history import branches, sessions
from proxy.history.serializers import JSON, plain_message, plain_message_json, plain_session
from proxy.routes import bodies, parameters, streaming_json
from proxy.routes.parameters import named_user, numbered_page_of, services_of, session_id_of, visible_user
from proxy.routes.read_response import read_response
from proxy.routes.resource import Resource
from proxy.services import State
from proxy.storage.connection import Connection


async def create_session(request: Request[State]) -> Response:
    given = await bodies.read_optional_object(request)
    user_id = named_user(request)
    work = partial(
        sessions.create_session,
        user_id=user_id,
        external_id=None,
        given=bodies.change(given),
        key=bodies.idempotency_key(request, given, user_id),
    )
    return json_response(plain_session(await services_of(request).write(work)), status=201)


async def list_sessions(request: Request[State]) -> Response:
    number, page = numbered_page_of(request)
    active_only = parameters.flag(request, "active_only")
    user_id = named_user(request)

    def work(connection: Connection) -> JSON:
        found = branches.list_sessions(connection, user_id=user_id, page=page, active_only=active_only)
        items = [plain_session(session) for session in found["sessions"]]
        return _items(items, number=number, size=page.limit, total=found["total"])

    return await read_response(services_of(request), work)


async def get_session(request: Request[State]) -> Response:
    services = services_of(request)
    work = partial(branches.open_branch, id_=session_id_of(request), user_id=visible_user(request))
    session, numbers = await services.read(work)
    return streaming_json.json_response(
        streaming_json.branch(services, plain_session(session), numbers, show=plain_message_json)
    )


async def update_session(request: Request[State]) -> Response:
    """Changes the title."""
    change = bodies.change(await bodies.read_object(request))
    if change == sessions.SessionPatch():
        raise InvalidRequestError("title must be a non-empty string.", param="title")
    work = partial(sessions.update_session, id_=session_id_of(request), user_id=visible_user(request), change=change)
    return json_response(plain_session(await services_of(request).write(work)))


async def delete_session(request: Request[State]) -> Response:
    work = partial(sessions.delete_session, id_=session_id_of(request), user_id=visible_user(request))
    await services_of(request).delete(work)
    return json_response({"success": True})


async def append_message(request: Request[State]) -> Response:
    given = await bodies.read_object(request)
    user_id = visible_user(request)
    work = partial(
        sessions.append_message,
        id_=session_id_of(request),
        user_id=user_id,
        new=bodies.new_message(given),
        key=bodies.idempotency_key(request, given, user_id),
    )
    return json_response(plain_message(await services_of(request).write(work)), status=201)


async def list_messages(request: Request[State]) -> Response:
    """One page of the newest branch."""
    number, page = numbered_page_of(request)
    services = services_of(request)
    work = partial(
        branches.open_messages,
        id_=session_id_of(request),
        user_id=visible_user(request),
        page=page,
        show=plain_message_json,
    )
    found = await services.read(work)
    return await streaming_json.page_response(
        services, found, name="items", page=number, size=page.limit, total=found.total
    )


def _items(items: list[JSON], *, number: int, size: int, total: int) -> JSON:
    return {"items": items, "page": number, "size": size, "total": total}


routes = [
    Route("/api/sessions", Resource(GET=list_sessions, POST=create_session)),
    Route("/api/sessions/{session_id:path}/messages", Resource(GET=list_messages, POST=append_message)),
    Route(
        "/api/sessions/{session_id:path}",
        Resource(GET=get_session, PUT=update_session, PATCH=update_session, DELETE=delete_session),
    ),
]
