"""`GET /v1/search`: messages that hold a text."""

import asyncio
import sqlite3
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.errors import InvalidRequestError, json_response
from proxy.history import branches
from proxy.history.serializers import JSON, session_json
from proxy.routes import parameters
from proxy.routes.parameters import named_user, services_of, visible_user
from proxy.routes.resource import Resource
from proxy.search import search
from proxy.search.search import ORDERS, QUERY_LENGTH_MAX, Hit, Order, Query
from proxy.services import Services, State
from proxy.storage import queries
from proxy.storage.queries import Page


async def search_messages(request: Request[State]) -> Response:
    """The messages that hold `q`, by relevance (among the newest of them) or, with `order=newest`, by time."""
    services = services_of(request)
    query, page, order = await _query(services, request), parameters.page_of(request), _order_of(request)
    await services.recorder.writer.flushed()
    async with services.searches:
        content = await asyncio.to_thread(_found, services, query, page, order)
    return json_response(content)


async def _query(services: Services, request: Request[State]) -> Query:
    given = request.query_params
    text = parameters.text(given, "q")
    if not text or len(text) > QUERY_LENGTH_MAX:
        raise InvalidRequestError(f"q is a text of 1 to {QUERY_LENGTH_MAX} characters.", param="q")
    user_id = given.get("user_id")
    session_id = parameters.text(given, "session_id")
    reach = visible_user(request) if user_id is None else named_user(request, user_id)
    if session_id is not None:
        find = partial(branches.find_session, id_=session_id, user_id=reach)
        session_id = (await services.read(find)).session_id
    role = parameters.text(given, "role")
    if role is not None and role not in parameters.ROLES:
        raise InvalidRequestError(f"role is one of {', '.join(parameters.ROLES)}.", param="role")
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
    raise InvalidRequestError(f"order is one of {', '.join(ORDERS)}.", param="order")


def _found(services: Services, query: Query, page: Page, order: Order) -> JSON:
    with search.opened(services.database.path) as connection:
        hits, has_more = search.search(connection, query, limit=page.limit, offset=page.offset, order=order)
        results = [each for each in (_result(connection, hit) for hit in hits) if each is not None]
    return {"results": results, "has_more": has_more}


def _result(connection: sqlite3.Connection, hit: Hit) -> JSON | None:
    """A hit as the route shows it; None where its message was deleted since."""
    row = queries.get_message(connection, hit.message_no)
    session = None if row is None else queries.get_session(connection, row.session_id)
    if row is None or session is None:
        return None
    names = ("message_id", "parent_id", "exchange_id", "role", "model", "tokens", "status", "created_at")
    return {
        "session": session_json(session),
        "message": {name: getattr(row, name) for name in names},
        "snippet": hit.snippet,
    }


routes = [Route("/v1/search", Resource(GET=search_messages))]
