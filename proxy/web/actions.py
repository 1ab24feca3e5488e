"""Actions on a session (rename, delete, export), and a message's raw text and images."""

import re
from base64 import b64decode
from functools import partial

from starlette.responses import Response, StreamingResponse

from proxy.errors import APIError, NotFoundError
from proxy.history import branches, sessions
from proxy.history.sessions import SessionPatch
from proxy.maintenance import export_file
from proxy.maintenance.export import FORMATS, MEDIA_TYPES, Scope
from proxy.storage import queries
from proxy.storage.queries.sessions import Session
from proxy.web.rendering import clip, number, raw_headers
from proxy.web.visits import Visit, raw, see_other

_TITLE_MAX = 500  # as in the API
# Image types without active content; SVG may contain scripts.
_IMAGE = re.compile(r"data:(image/(?:png|jpeg|gif|webp|avif));base64,")


def _id(visit: Visit) -> str:
    return str(visit.request.path_params["session_id"])


async def session_of(visit: Visit) -> Session:
    """The session in the URL. Raises NotFoundError, also for another user's session."""
    return await visit.services.read(partial(branches.find_session, id_=_id(visit), user_id=visit.reach))


async def ask_for_title(visit: Visit) -> Response:
    """The form for a new title."""
    return await visit.page("rename.html", session=await session_of(visit), problem=None)


async def rename(visit: Visit) -> Response:
    """Changes the session's title."""
    title = " ".join((await visit.form()).get("title", "").replace("\0", "").split())
    session = await session_of(visit)
    if not title or len(title) > _TITLE_MAX:
        problem = f"A title must have 1 to {_TITLE_MAX} characters."
        return await visit.page("rename.html", status=400, session=session, problem=problem)
    change = SessionPatch(title=title)
    await visit.services.write(
        partial(sessions.update_session, id_=session.session_id, user_id=visit.reach, change=change)
    )
    return see_other(f"/ui/s/{session.session_id}")


async def ask_to_delete(visit: Visit) -> Response:
    """Asks for confirmation, and says what will be deleted."""
    session = await session_of(visit)
    lines = [
        f"“{clip(session.title)}”",
        f"{number(session.message_count)} messages of all branches, and every request and reply recorded for them, "
        "will be deleted. Backups are not changed.",
    ]
    back = f"/ui/s/{session.session_id}"
    return await visit.page("confirm.html", heading="Delete this session?", lines=lines, button="Delete", back=back)


async def delete(visit: Visit) -> Response:
    await visit.services.delete(partial(sessions.delete_session, id_=_id(visit), user_id=visit.reach))
    return see_other("/ui")


async def export(visit: Visit) -> Response:
    """Downloads the session as a file."""
    format_ = next((each for each in FORMATS if each == visit.query.get("format", "jsonl")), None)
    if format_ is None:
        raise APIError(f"The format must be one of {', '.join(FORMATS)}.", status=400)
    session = await session_of(visit)
    scope = Scope(session_id=session.session_id, names_upstreams=visit.visitor.sees_all)
    services = visit.services
    file = await services.exports.written(
        session.user_id, services.database.connect, scope, format_, folder=services.settings.state_path
    )
    name = f"{session.session_id}.{export_file.suffix(format_)}"
    headers = raw_headers() | {"content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(services.exports.pieces(file), media_type=MEDIA_TYPES[format_], headers=headers)


async def message_text(visit: Visit) -> Response:
    """The full text of a message as plain text."""
    session = await session_of(visit)
    read = partial(queries.web.get_message_text, message_id=_message_id(visit), session_id=session.session_id)
    text = await visit.services.read(read)
    if text is None:
        raise NotFoundError("There is no such message.")
    return raw(text.encode("utf-8", "replace"), media_type="text/plain; charset=utf-8")


async def message_image(visit: Visit) -> Response:
    """An image of a message, if it has a type that browsers display without executing anything."""
    session = await session_of(visit)
    find = partial(
        queries.web.get_message_blob,
        message_id=_message_id(visit),
        session_id=session.session_id,
        digest=str(visit.request.path_params["digest"]),
    )
    data = await visit.services.read(find)
    kind = None if data is None else _IMAGE.match(data)
    if data is None or kind is None:
        raise NotFoundError("There is no such image.")
    try:
        content = await visit.pages.work(lambda: b64decode(data[kind.end() :]))
    except ValueError as exc:
        raise NotFoundError("There is no such image.") from exc
    return raw(content, media_type=kind[1])


def _message_id(visit: Visit) -> str:
    return str(visit.request.path_params["message_id"])
