"""`/ui/keys`: admins list, create and revoke keys; other users list and revoke their own."""

from datetime import date
from functools import partial
from typing import Any

from starlette.responses import Response

from proxy.access.keys import NewKey, create_key
from proxy.errors import APIError, NotFoundError
from proxy.ids import timestamp
from proxy.storage import queries
from proxy.storage.queries.keys import ApiKey
from proxy.web.visits import Visit, day_of, see_other

JSON = dict[str, Any]

_SHOWN = 500
_TEXT_MAX = 256


async def list_keys(visit: Visit) -> Response:
    """The keys visible to this visitor."""
    return await _page(visit)


async def _page(visit: Visit, *, secret: str | None = None, problem: str | None = None, status: int = 200) -> Response:
    keys: list[ApiKey] = []
    if visit.visitor.has_key:
        read = partial(queries.web.list_keys, user_id=visit.reach, limit=_SHOWN + 1)
        keys = await visit.services.read(read)
    shown = [_shown(key) for key in keys[:_SHOWN]]
    has_more = len(keys) > _SHOWN
    return await visit.page("keys.html", status=status, keys=shown, has_more=has_more, secret=secret, problem=problem)


def _shown(key: ApiKey) -> JSON:
    is_over = key.expires_at is not None and key.expires_at <= timestamp()
    names = ("key_id", "user_id", "name", "hint", "is_admin", "created_at", "expires_at", "last_used_at")
    return {name: getattr(key, name) for name in names} | {
        "state": "revoked" if key.revoked_at else "expired" if is_over else "valid"
    }


async def make_key(visit: Visit) -> Response:
    """Creates a key and shows it once."""
    if not (visit.visitor.is_admin and visit.visitor.has_key):
        raise APIError("Only an admin can create keys.", status=403)
    form = await visit.form()
    try:
        new = _new_key(form.get("user", ""), form.get("name", ""), form.get("expires", ""), form.get("admin", ""))
    except APIError as exc:
        return await _page(visit, problem=exc.message, status=400)
    secret, _ = await visit.services.write(partial(create_key, grant=new))
    return await _page(visit, secret=secret, status=201)


def _new_key(user: str, name: str, expires: str, admin: str) -> NewKey:
    user_id = user.strip()
    if not user_id or len(user_id) > _TEXT_MAX or len(name) > _TEXT_MAX or "\0" in user_id + name:
        raise APIError(f"A user and a name must be texts of up to {_TEXT_MAX} characters.", status=400)
    day = day_of(expires or None)
    if day is not None and day <= date.today().isoformat():
        raise APIError("The expiry date must be in the future.", status=400)
    return NewKey(
        user_id=user_id,
        name=name.strip() or None,
        is_admin=admin == "on",
        expires_at=f"{day}T00:00:00.000Z" if day else None,
    )


async def ask_to_revoke(visit: Visit) -> Response:
    """Asks for confirmation."""
    key = await _find(visit)
    lines = [f"Key {key.hint}… of {key.user_id}{f', “{key.name}”' if key.name else ''}."]
    if key.key_id == visit.visitor.key_id:
        lines.append("You are logged in with this key, and will be logged out.")
    lines.append("Programs that use it will be rejected within seconds. A revoked key cannot be restored.")
    return await visit.page(
        "confirm.html", heading="Revoke this key?", lines=lines, button="Revoke the key", back="/ui/keys"
    )


async def revoke(visit: Visit) -> Response:
    key = await _find(visit)
    await visit.services.write(partial(queries.keys.revoke_key, key=key.key_id, now=timestamp()))
    return see_other("/ui/keys")


async def _find(visit: Visit) -> ApiKey:
    """The key in the URL, if this visitor may see it."""
    if not visit.visitor.has_key:
        raise APIError("Keys are created and revoked on the command line until this page needs a login.", status=403)
    key_id = visit.request.path_params["key_id"]
    keys = await visit.services.read(partial(queries.keys.list_keys, user_id=visit.reach))
    found: ApiKey | None = next((key for key in keys if key.key_id == key_id), None)
    if found is None:
        raise NotFoundError("There is no such key.")
    return found
