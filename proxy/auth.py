"""Who is calling, and what they may do."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """The one behind a request. `user_id` is None where no key says it (auth is off)."""

    user_id: str | None
    is_admin: bool = False
    has_key: bool = False


ANYONE = Caller(None)
