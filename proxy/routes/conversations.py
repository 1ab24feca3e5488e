"""`/v1/conversations`: OpenAI's Conversations API; each conversation is a session."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.errors import InvalidRequestError, json_response
from proxy.history import conversations
from proxy.history.given_items import messages_of
from proxy.history.serializers import JSON
from proxy.routes import bodies
from proxy.routes.local_or_upstream import LocalOrUpstream
from proxy.routes.parameters import (
    Values,
    named_user,
    openai_page_of,
    order_of,
    services_of,
    session_id_of,
    visible_user,
)
from proxy.routes.read_response import read_response
from proxy.services import State

# OpenAI's limit for creating items.
_ITEMS_MAX = 20


async def create_conversation(request: Request[State]) -> Response:
    given = await bodies.read_optional_object(request)
    work = partial(
        conversations.create_conversation,
        user_id=named_user(request),
        metadata=bodies.pairs(given),
        messages=[] if given.get("items") is None else _messages_in(given),
    )
    return json_response(await services_of(request).write(work))


async def get_conversation(request: Request[State]) -> Response:
    work = partial(conversations.get_conversation, id_=session_id_of(request), user_id=visible_user(request))
    return await read_response(services_of(request), work)


async def update_conversation(request: Request[State]) -> Response:
    """Replaces the metadata."""
    metadata = await bodies.read_metadata(request)
    work = partial(
        conversations.update_conversation,
        id_=session_id_of(request),
        user_id=visible_user(request),
        metadata=metadata,
    )
    return json_response(await services_of(request).write(work))


async def delete_conversation(request: Request[State]) -> Response:
    work = partial(conversations.delete_conversation, id_=session_id_of(request), user_id=visible_user(request))
    return json_response(await services_of(request).delete(work))


async def list_items(request: Request[State]) -> Response:
    work = partial(
        conversations.list_items,
        id_=session_id_of(request),
        user_id=visible_user(request),
        page=openai_page_of(request),
        order=order_of(request, default="desc"),
        include=_include_of(request),
    )
    return await read_response(services_of(request), work)


async def add_items(request: Request[State]) -> Response:
    """Appends items to a conversation."""
    messages = _messages_in(await bodies.read_object(request))
    work = partial(
        conversations.add_items,
        id_=session_id_of(request),
        user_id=visible_user(request),
        messages=messages,
        include=_include_of(request),
    )
    return json_response(await services_of(request).write(work))


async def get_item(request: Request[State]) -> Response:
    work = partial(
        conversations.get_item,
        id_=session_id_of(request),
        item_id=request.path_params["item_id"],
        user_id=visible_user(request),
        include=_include_of(request),
    )
    return await read_response(services_of(request), work)


async def delete_item(request: Request[State]) -> Response:
    """Deletes an item; returns the conversation."""
    work = partial(
        conversations.delete_item,
        id_=session_id_of(request),
        item_id=request.path_params["item_id"],
        user_id=visible_user(request),
    )
    return json_response(await services_of(request).delete(work))


def _messages_in(given: Values) -> list[JSON]:
    items = given.get("items")
    if not isinstance(items, list) or not 1 <= len(items) <= _ITEMS_MAX:
        raise InvalidRequestError(f"items must be a list of 1 to {_ITEMS_MAX} items.", param="items")
    return messages_of(items)


def _include_of(request: Request[State]) -> frozenset[str]:
    query = request.query_params
    return frozenset(query.getlist("include[]") + query.getlist("include"))


routes = [
    Route("/v1/conversations", LocalOrUpstream(POST=create_conversation)),
    Route("/v1/conversations/{session_id:path}/items/{item_id}", LocalOrUpstream(GET=get_item, DELETE=delete_item)),
    Route("/v1/conversations/{session_id:path}/items", LocalOrUpstream(GET=list_items, POST=add_items)),
    Route(
        "/v1/conversations/{session_id:path}",
        LocalOrUpstream(GET=get_conversation, POST=update_conversation, DELETE=delete_conversation),
    ),
]
