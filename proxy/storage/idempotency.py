"""A change that is retried with the same `Idempotency-Key` is made once: the retry finds what was made.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from proxy.errors import APIError
from proxy.ids import timestamp
from proxy.storage import queries
from proxy.storage.connection import Connection

T = TypeVar("T")

_KEPT_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What a request with a key is known by: `digest` of its user, route and key, `request_digest` of its body."""

    digest: bytes
    request_digest: bytes


def idempotency_key(*scope: str, body: bytes) -> IdempotencyKey:
    """The key of a request; `scope` is its user, route and the key that the caller sent."""
    text = "\0".join(scope).encode("utf-8", "surrogatepass")
    return IdempotencyKey(sha256(text).digest(), sha256(body).digest())


def once(
    connection: Connection,
    key: IdempotencyKey | None,
    *,
    make: Callable[[], tuple[str, T]],
    find: Callable[[str], T],
) -> T:
    """What `make` makes, which gives its id too; or what `find` finds by the id that an earlier try made.

    Raises APIError 422 where the key was used for another request.
    """
    known = None if key is None else queries.durable.get_idempotency_key(connection, key.digest)
    if key is None or known is None:
        made_id, made = make()
        if key is not None:
            queries.durable.insert_idempotency_key(
                connection, key.digest, request_digest=key.request_digest, made_id=made_id, now=timestamp()
            )
        return made
    request_digest, made_id = known
    if request_digest != key.request_digest:
        raise APIError(
            "This Idempotency-Key was used for another request.",
            status=422,
            type_="invalid_request_error",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
    return find(made_id)


def forget_old(connection: Connection, *, now_seconds: float) -> int:
    """Forget the keys of a day ago; how many."""
    return queries.durable.delete_old_idempotency_keys(
        connection, before=timestamp(max(0.0, now_seconds - _KEPT_SECONDS))
    )
