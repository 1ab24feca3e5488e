"""`GET /v1/sessions/{id}/export`: one session as a file."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from email.utils import formatdate
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from proxy.errors import InvalidRequestError
from proxy.history import branches
from proxy.maintenance import export
from proxy.maintenance.export import FORMATS, MEDIA_TYPES, Format, Scope
from proxy.routes import parameters
from proxy.routes.parameters import services_of, session_id_of, visible_user
from proxy.routes.resource import Resource
from proxy.services import State
from proxy.storage.sqlite import connect

_MEMORY_BYTES = 2**20
_PIECE_BYTES = 2**16


async def export_session(request: Request[State]) -> Response:
    """The session in the format asked for."""
    services = services_of(request)
    format_ = _format(request)
    find = partial(branches.find_session, id_=session_id_of(request), user_id=visible_user(request))
    session = await services.read(find)
    scope = Scope(session_id=session.session_id, completed_only=parameters.flag(request, "completed_only"))
    # Written aside first: a caller who reads slowly must not hold a snapshot, nor one of the few readers.
    file = await asyncio.to_thread(_written, services.database.path, scope, format_)
    headers = {
        "date": formatdate(usegmt=True),
        "content-disposition": f'attachment; filename="{session.session_id}.{_suffix(format_)}"',
    }
    return StreamingResponse(_pieces(file), media_type=MEDIA_TYPES[format_], headers=headers)


def _format(request: Request[State]) -> Format:
    asked = request.query_params.get("format", "jsonl")
    for format_ in FORMATS:
        if format_ == asked:
            return format_
    raise InvalidRequestError(f"format is one of {', '.join(FORMATS)}.", param="format")


def _suffix(format_: Format) -> str:
    return "md" if format_ == "markdown" else "jsonl"


def _written(path: Path, scope: Scope, format_: Format) -> SpooledTemporaryFile[bytes]:
    file = SpooledTemporaryFile[bytes](_MEMORY_BYTES)
    with closing(connect(path)) as connection:
        connection.execute("BEGIN")
        for text in export.export(connection, scope, format_=format_):
            file.write(text.encode())
    file.seek(0)
    return file


async def _pieces(file: SpooledTemporaryFile[bytes]) -> AsyncIterator[bytes]:
    with file:
        while data := file.read(_PIECE_BYTES):
            yield data


routes = [Route("/v1/sessions/{session_id:path}/export", Resource(GET=export_session))]
