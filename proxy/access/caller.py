"""The caller of a request: its user, its key, and which data it may access."""

from dataclasses import dataclass

from proxy.access.attribution import user_header
from proxy.errors import NotFoundError
from proxy.storage.queries.users import DEFAULT_USER_ID
from proxy.wire.headers import Headers


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request. `user_id` is None if no key identifies a user (auth is off)."""

    user_id: str | None
    is_admin: bool = False
    has_key: bool = False


ANYONE = Caller(None)


def sees_upstreams(caller: Caller) -> bool:
    """Whether the caller may see upstream addresses: admins, and everyone if keys are not required."""
    return caller.is_admin or caller.user_id is None


def acting_user(caller: Caller, headers: Headers) -> str | None:
    """The user whose data a request by id may access: the key's user.

    None means any user: for an admin, or without keys, unless the request names one.
    """
    if caller.user_id is not None and not caller.is_admin:
        return caller.user_id
    return user_header(headers)


def owner_of(caller: Caller, headers: Headers, *, named: str | None = None) -> str:
    """The user whose list is read or whose session is created. Raises NotFoundError if another user is named."""
    if caller.user_id is not None and not caller.is_admin and named not in (None, caller.user_id):
        raise NotFoundError("No such user.")
    return named or acting_user(caller, headers) or caller.user_id or DEFAULT_USER_ID
