"""`GET /v1/search`: full-text search in messages."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.errors import InvalidRequestError
from proxy.history import branches
from proxy.history.serializers import JSON, session_json
from proxy.routes import parameters
from proxy.routes.parameters import caller_of, named_user, services_of, visible_user
from proxy.routes.read_response import encoded, json_response
from proxy.routes.resource import Resource
from proxy.search.deadline import Deadline
from proxy.search.engines import search
from proxy.search.query import ORDERS, QUERY_LENGTH_MAX, Found, Order, Query
from proxy.services import Services, State
from proxy.storage.page import Page


async def search_messages(request: Request[State]) -> Response:
    """The messages that contain `q`: by relevance (among the newest ones), or by time with `order=newest`."""
    services = services_of(request)
    query, page, order = await _query(services, request), parameters.page_of(request), _order_of(request)
    await services.recorder.writer.flushed()
    user_id = caller_of(request).user_id or query.user_id or ""
    content = await services.searches.run(user_id, partial(_found, services, query, page, order))
    return json_response(services, content)


async def _query(services: Services, request: Request[State]) -> Query:
    given = request.query_params
    text = parameters.text(given, "q")
    if not text or len(text) > QUERY_LENGTH_MAX:
        raise InvalidRequestError(f"q must be a text of 1 to {QUERY_LENGTH_MAX} characters.", param="q")
    user_id = given.get("user_id")
    session_id = parameters.text(given, "session_id")
    reach = visible_user(request) if user_id is None else named_user(request, user_id)
    if session_id is not None:
        find = partial(branches.find_session, id_=session_id, user_id=reach)
        session_id = (await services.read(find)).session_id
    role = parameters.text(given, "role")
    if role is not None and role not in parameters.ROLES:
        raise InvalidRequestError(f"role must be one of {', '.join(parameters.ROLES)}.", param="role")
    return Query(
        text=text,
        user_id=reach,
        session_id=session_id,
        role=role,
        model=parameters.text(given, "model"),
        since=parameters.moment(request, "since"),
        until=parameters.moment(request, "until"),
    )


def _order_of(request: Request[State]) -> Order:
    given = request.query_params.get("order", "relevance")
    for order in ORDERS:
        if given == order:
            return order
    raise InvalidRequestError(f"order must be one of {', '.join(ORDERS)}.", param="order")


def _found(services: Services, query: Query, page: Page, order: Order, deadline: Deadline) -> bytes:
    found, has_more = search(
        services.settings, query, limit=page.limit, offset=page.offset, order=order, deadline=deadline
    )
    return encoded({"results": [_result(each) for each in found], "has_more": has_more})


def _result(found: Found) -> JSON:
    """A hit in the response."""
    return {"session": session_json(found.session), "message": found.message, "snippet": found.hit.snippet}


routes = [Route("/v1/search", Resource(GET=search_messages))]
