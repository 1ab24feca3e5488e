"""Who is calling, and what they may do."""

from dataclasses import dataclass

from proxy.access.attribution import user_header
from proxy.errors import NotFoundError
from proxy.storage.queries.users import DEFAULT_USER_ID
from proxy.wire.headers import Headers


@dataclass(frozen=True, slots=True)
class Caller:
    """The one behind a request. `user_id` is None where no key says it (auth is off)."""

    user_id: str | None
    is_admin: bool = False
    has_key: bool = False


ANYONE = Caller(None)


def sees_upstreams(caller: Caller) -> bool:
    """Whether the upstreams' addresses are for this caller: an admin, or anybody where no keys are asked for."""
    return caller.is_admin or caller.user_id is None


def acting_user(caller: Caller, headers: Headers) -> str | None:
    """Whose data a request by id may touch: the key's user's; any user's for an admin, or without keys, unless the
    request names one."""
    if caller.user_id is not None and not caller.is_admin:
        return caller.user_id
    return user_header(headers)


def owner_of(caller: Caller, headers: Headers, *, named: str | None = None) -> str:
    """The one user whose list is read, or whose session is made. Raises NotFoundError where it is another's."""
    if caller.user_id is not None and not caller.is_admin and named not in (None, caller.user_id):
        raise NotFoundError("No such user.")
    return named or acting_user(caller, headers) or caller.user_id or DEFAULT_USER_ID
