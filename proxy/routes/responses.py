"""`/v1/responses/{id}`: reads, streams, cancels and deletes recorded responses. Unknown ids are relayed to upstream."""

import asyncio
from collections.abc import AsyncIterator
from email.utils import formatdate
from functools import partial

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from proxy.errors import InvalidRequestError, NotFoundError, json_response
from proxy.history import responses
from proxy.history.response_events import Replay
from proxy.history.serializers import JSON
from proxy.recording.open_exchange import OpenExchange
from proxy.routes import parameters
from proxy.routes.parameters import openai_page_of, order_of, services_of, visible_user
from proxy.routes.passthrough import Passthrough
from proxy.routes.read_response import read_response
from proxy.routes.resource import Resource
from proxy.services import Services, State
from proxy.wire.dialect_endpoints import RESPONSES

# How late a caller that continues a stream sees new events; each poll costs a database read.
_POLL_SECONDS = 0.2


class OursOrUpstreams(Resource):
    """A resource whose ids may also exist only at upstream."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles requests for recorded responses, and relays the others."""
        services: Services = scope["state"]["services"]
        if services.settings.responses_state == "proxy":
            try:
                await super().__call__(scope, receive, send)
            except (NotFoundError, HTTPException):
                pass
            else:
                return
        await Passthrough()(scope, receive, send)


async def get_response(request: Request[State]) -> Response:
    """One response, or the rest of its stream."""
    if parameters.flag(request, "stream"):
        return await _stream(request)
    work = partial(responses.get_response, id_=_id_of(request), user_id=visible_user(request))
    return await read_response(services_of(request), work)


async def _stream(request: Request[State]) -> Response:
    """The events of a response after a given one, including those still being produced."""
    services, id_, user_id = services_of(request), _id_of(request), visible_user(request)
    # OpenAI numbers the events of a response from 0, so -1 is before the first.
    after = parameters.integer(request.query_params, "starting_after", default=-1, least=0, most=2**31)
    live = services.recorder.find_open(id_, user_id=user_id)
    if live is not None:
        exchange_id = live.exchange.exchange_id
    else:
        row = await services.read(partial(responses.find_response, id_=id_, user_id=user_id))
        exchange_id = row.exchange_id
        if not await services.read(partial(responses.has_events, exchange_id=exchange_id)):
            raise InvalidRequestError("The events of this response are no longer stored.", param="stream")
    events = _events(services, Replay(exchange_id, after=after), live)
    headers = {"date": formatdate(usegmt=True), "cache-control": "no-store"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _events(services: Services, replay: Replay, live: OpenExchange | None) -> AsyncIterator[bytes]:
    while live is not None and services.recorder.is_open(live):
        # Read both without awaiting in between, so that together they form the whole stream.
        stop, tail = live.sequence, live.unwritten()
        if new := await services.read(partial(replay.read, stop=stop, tail=tail)):
            yield new
        await asyncio.sleep(_POLL_SECONDS)
    if new := await services.read(partial(replay.read, stop=None, tail=b"")):
        yield new
    if not replay.has_ended:
        error: JSON = {"message": "The response was cut before its end.", "type": "interrupted", "param": None}
        yield RESPONSES.error_event({**error, "code": "interrupted"}, sequence_number=replay.last + 1)


async def cancel_response(request: Request[State]) -> Response:
    """Cancels a response in progress and returns it; a finished one is returned unchanged."""
    services, id_, user_id = services_of(request), _id_of(request), visible_user(request)
    live = services.recorder.find_open(id_, user_id=user_id)
    if live is not None and live.abort is not None:
        # The chat ends in its own task: it closes upstream's connection, and stores what has arrived.
        live.abort()
        async with asyncio.timeout(services.settings.commit_timeout_seconds):
            while services.recorder.is_open(live):  # noqa: ASYNC110 - rare, so polling is cheaper than an event in every exchange
                await asyncio.sleep(_POLL_SECONDS / 10)
    work = partial(responses.get_response, id_=id_, user_id=user_id)
    return await read_response(services, work)


async def delete_response(request: Request[State]) -> Response:
    work = partial(responses.delete_response, id_=_id_of(request), user_id=visible_user(request))
    return json_response(await services_of(request).delete(work))


async def list_input_items(request: Request[State]) -> Response:
    """One page of the input items of a response, newest first."""
    work = partial(
        responses.list_input_items,
        id_=_id_of(request),
        user_id=visible_user(request),
        page=openai_page_of(request),
        order=order_of(request, default="desc"),
    )
    return await read_response(services_of(request), work)


def _id_of(request: Request[State]) -> str:
    return str(request.path_params["id"])


# Longer paths must come before the id itself.
routes = [
    Route("/v1/responses/{id}/input_items", OursOrUpstreams(GET=list_input_items)),
    Route("/v1/responses/{id}/cancel", OursOrUpstreams(POST=cancel_response)),
    Route("/v1/responses/{id}", OursOrUpstreams(GET=get_response, DELETE=delete_response)),
]
