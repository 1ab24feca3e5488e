"""`DELETE /v1/users/{user_id}`: deletes a user with all its data."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.access.gate import REFRESH_SECONDS, Gate
from proxy.errors import NotFoundError, json_response
from proxy.ids import moment, timestamp
from proxy.recording.spill import spill_files
from proxy.routes.parameters import named_user, services_of
from proxy.routes.resource import Resource
from proxy.services import Services, State
from proxy.storage import queries, tombstones
from proxy.storage.connection import Connection
from proxy.storage.wal import empty_log

# Rows per transaction; small enough not to delay chats that wait for the same writer.
_BATCH = 200
_NOTICED_SECONDS = REFRESH_SECONDS + 1.0  # including the time of the refresh itself


async def delete_user(request: Request[State]) -> Response:
    """Deletes the user's sessions, messages, exchanges and keys in batches, then the user."""
    user_id = named_user(request, request.path_params["user_id"])
    services = services_of(request)
    if await services.read(lambda connection: queries.users.get_user(connection, user_id)) is None:
        raise NotFoundError("No such user.")
    await _revoke_keys(services, request.state["gate"], user_id)
    await _delete(services, user_id)
    await asyncio.to_thread(empty_log, services.database.path)
    return json_response({"user_id": user_id, "deleted": True})


async def _revoke_keys(services: Services, gate: Gate, user_id: str) -> None:
    """Revokes the user's keys and waits until every process has noticed: a later chat would create the user again."""
    revoked = await services.write(
        lambda connection: queries.keys.revoke_keys_of_user(connection, user_id, now=timestamp())
    )
    gate.keys.forget_user(user_id)
    if revoked and len(spill_files(services.database.path, folder=services.settings.state_path)) > 1:
        await asyncio.sleep(_NOTICED_SECONDS)


async def _delete(services: Services, user_id: str) -> None:
    while await services.write(lambda connection: queries.users.delete_some_of_user(connection, user_id, limit=_BATCH)):
        pass
    await services.write(lambda connection: _delete_rest(connection, user_id))


def _delete_rest(connection: Connection, user_id: str) -> None:
    """Deletes the user row and what chats have stored meanwhile.

    Chats that started earlier cannot store anything later.
    """
    tombstones.add_tombstone(connection, "user", user_id, now=moment())
    queries.users.delete_user(connection, user_id)


routes = [Route("/v1/users/{user_id:path}", Resource(DELETE=delete_user))]
