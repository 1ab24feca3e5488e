"""`/v1/sessions` and `/v1/users/{user_id}/history`: reads and edits sessions, messages, branches and exchanges."""

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.access.caller import sees_upstreams
from proxy.errors import json_response
from proxy.history import branch_list, branches, dialects, exchange_list, sessions
from proxy.routes import bodies, parameters, streaming_json
from proxy.routes.parameters import caller_of, named_user, services_of, session_id_of, visible_user
from proxy.routes.read_response import read_response
from proxy.routes.resource import Resource
from proxy.services import State
from proxy.storage.page import Page


async def create_session(request: Request[State]) -> Response:
    given = await bodies.read_object(request)
    user_id = named_user(request, parameters.text(given, "user_id"))
    work = partial(
        sessions.create_session,
        user_id=user_id,
        external_id=bodies.external_id(given),
        given=bodies.change(given),
        key=bodies.idempotency_key(request, given, user_id),
    )
    return json_response(await services_of(request).write(work), status=201)


async def list_sessions(request: Request[State]) -> Response:
    work = partial(
        branches.list_sessions,
        user_id=named_user(request, parameters.text(request.query_params, "user_id")),
        page=parameters.page_of(request),
        active_only=parameters.flag(request, "active_only"),
    )
    return await read_response(services_of(request), work)


async def get_session(request: Request[State]) -> Response:
    work = partial(branches.get_session, id_=session_id_of(request), user_id=visible_user(request))
    return await read_response(services_of(request), work)


async def update_session(request: Request[State]) -> Response:
    change = bodies.change(await bodies.read_object(request))
    work = partial(sessions.update_session, id_=session_id_of(request), user_id=visible_user(request), change=change)
    return json_response(await services_of(request).write(work))


async def delete_session(request: Request[State]) -> Response:
    work = partial(sessions.delete_session, id_=session_id_of(request), user_id=visible_user(request))
    return json_response({"session_id": await services_of(request).delete(work), "deleted": True})


async def append_message(request: Request[State]) -> Response:
    """Stores a message posted by hand."""
    given = await bodies.read_object(request)
    user_id = visible_user(request)
    work = partial(
        sessions.append_message,
        id_=session_id_of(request),
        user_id=user_id,
        new=bodies.new_message(given),
        key=bodies.idempotency_key(request, given, user_id),
    )
    return json_response(await services_of(request).write(work), status=201)


# Without a format, or with `openai`, messages have their stored form, which is chat's.
_DIALECTS: dict[str | None, dialects.Dialect] = {"responses": "responses", "anthropic": "anthropic"}


async def list_messages(request: Request[State]) -> Response:
    """One page of a branch."""
    services, form = services_of(request), parameters.message_format(request)
    asked: dict[str, Any] = {
        "id_": session_id_of(request),
        "user_id": visible_user(request),
        "page": parameters.page_of(request),
        "order": parameters.order_of(request),
        "through": parameters.text(request.query_params, "branch"),
    }
    dialect = _DIALECTS.get(form)
    if dialect is not None:
        return await read_response(services, partial(dialects.list_messages, dialect=dialect, **asked))
    opening = branches.open_openai_messages if form == "openai" else branches.open_messages
    found = await services.read(partial(opening, **asked))
    return await streaming_json.page_response(
        services, found, name="messages", total=found.total, session_info=found.session
    )


async def list_branches(request: Request[State]) -> Response:
    work = partial(
        branch_list.list_branches,
        id_=session_id_of(request),
        user_id=visible_user(request),
        page=parameters.page_of(request),
    )
    return await read_response(services_of(request), work)


async def list_exchanges(request: Request[State]) -> Response:
    services, page = services_of(request), parameters.page_of(request)
    work = partial(exchange_list.open_exchanges, id_=session_id_of(request), user_id=visible_user(request), page=page)
    session_id, total = await services.read(work)
    return await streaming_json.exchanges_response(
        services, session_id, page=page, names_upstreams=sees_upstreams(caller_of(request)), total=total
    )


async def get_history(request: Request[State]) -> Response:
    """A user's sessions with their messages: one page as JSON, or all of them as JSON lines."""
    services = services_of(request)
    is_lines = streaming_json.LINES in request.headers.get("accept", "")
    user_id = named_user(request, parameters.text(request.path_params, "user_id"))
    work = partial(
        branches.open_history,
        user_id=user_id,
        page=Page(limit=-1) if is_lines else parameters.page_of(request),
        since=parameters.moment(request, "since"),
        until=parameters.moment(request, "until"),
    )
    user, session_ids, total = await services.read(work)
    if is_lines:
        return streaming_json.lines_response(streaming_json.history_lines(services, session_ids, user_id=user_id))
    return streaming_json.json_response(streaming_json.history(services, user, session_ids, total=total))


# Client-defined ids may contain slashes, so longer paths come first.
routes = [
    Route("/v1/sessions", Resource(GET=list_sessions, POST=create_session)),
    Route("/v1/sessions/{session_id:path}/messages", Resource(GET=list_messages, POST=append_message)),
    Route("/v1/sessions/{session_id:path}/branches", Resource(GET=list_branches)),
    Route("/v1/sessions/{session_id:path}/exchanges", Resource(GET=list_exchanges)),
    Route(
        "/v1/sessions/{session_id:path}",
        Resource(GET=get_session, PATCH=update_session, PUT=update_session, DELETE=delete_session),
    ),
    Route("/v1/users/{user_id:path}/history", Resource(GET=get_history)),
]
