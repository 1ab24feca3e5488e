"""`GET`, `POST` and `DELETE` on `/v1/chat/completions`: OpenAI's stored chat completions, from recorded exchanges."""

from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.access.attribution import checked_id
from proxy.errors import InvalidRequestError, NotFoundError, json_response
from proxy.history import branches, stored_completions
from proxy.history.stored_completions import Filter
from proxy.routes import bodies, parameters
from proxy.routes.local_or_upstream import LocalOrUpstream
from proxy.routes.parameters import named_user, openai_page_of, order_of, services_of, visible_user
from proxy.routes.read_response import read_response
from proxy.services import State
from proxy.storage.connection import Connection
from proxy.storage.queries.exchanges import COMPLETION_PREFIX
from proxy.wire.chat import CHAT


async def list_completions(request: Request[State]) -> Response:
    services = services_of(request)
    page, wanted = openai_page_of(request), _filter_of(request)
    found: list[str] = []
    cursor: str | None = None
    opened = await services.read(partial(_open, wanted=wanted, after=page.after))
    if opened is not None:
        wanted, cursor = opened
    while cursor is not None and len(found) <= page.limit:
        work = partial(stored_completions.scan, wanted=wanted, after=cursor, limit=page.limit + 1)
        fitting, cursor = await services.read(work)
        found += fitting
    loading = partial(stored_completions.get_completions, exchange_ids=found, limit=page.limit)
    return await read_response(services, loading)


async def get_completion(request: Request[State]) -> Response:
    work = partial(stored_completions.get_completion, id_=_id_of(request), user_id=visible_user(request))
    return await read_response(services_of(request), work)


async def update_completion(request: Request[State]) -> Response:
    """Replaces the metadata."""
    metadata = await bodies.read_metadata(request)
    work = partial(
        stored_completions.update_metadata, id_=_id_of(request), user_id=visible_user(request), metadata=metadata
    )
    return json_response(await services_of(request).write(work))


async def delete_completion(request: Request[State]) -> Response:
    work = partial(stored_completions.delete_completion, id_=_id_of(request), user_id=visible_user(request))
    return json_response(await services_of(request).delete(work))


async def list_messages(request: Request[State]) -> Response:
    """One page of the messages of a completion's request."""
    work = partial(
        stored_completions.list_messages,
        id_=_id_of(request),
        user_id=visible_user(request),
        page=openai_page_of(request),
        order=order_of(request),
    )
    return await read_response(services_of(request), work)


def _id_of(request: Request[State]) -> str:
    return COMPLETION_PREFIX + str(request.path_params["id"])


def _filter_of(request: Request[State]) -> Filter:
    query = request.query_params
    metadata = {
        name.removeprefix("metadata[")[:-1]: value
        for name, value in query.multi_items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    session_id = metadata.pop("session_id", None)
    return Filter(
        user_id=named_user(request),
        session_id=session_id,
        model=parameters.text(query, "model"),
        metadata=metadata,
        order=order_of(request),
    )


def _open(connection: Connection, *, wanted: Filter, after: str | None) -> tuple[Filter, str] | None:
    """The filter with the session's own id, and the start of the list; None if there is no such session."""
    if wanted.session_id is not None:
        try:
            id_ = checked_id(wanted.session_id, param="metadata.session_id")
            session = branches.find_session(connection, id_, user_id=wanted.user_id)
        except (InvalidRequestError, NotFoundError):
            return None
        wanted = replace(wanted, session_id=session.session_id)
    return wanted, stored_completions.start_of(connection, wanted, after)


# Only ids with a completion's prefix match: vLLM has other routes below this path, such as /render.
routes = [
    Route(CHAT.path, LocalOrUpstream(GET=list_completions), methods=["GET"]),
    Route(f"{CHAT.path}/chatcmpl-{{id:path}}/messages", LocalOrUpstream(GET=list_messages)),
    Route(
        f"{CHAT.path}/chatcmpl-{{id:path}}",
        LocalOrUpstream(GET=get_completion, POST=update_completion, DELETE=delete_completion),
    ),
]
