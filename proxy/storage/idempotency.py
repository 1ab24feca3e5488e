"""Idempotency keys: a change retried with the same `Idempotency-Key` is executed once; the retry returns its result.

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

# A retry follows within minutes; a day also covers a client that was stopped for the night.
_KEPT_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """`digest` identifies user, route and key; `request_digest` identifies the request body."""

    digest: bytes
    request_digest: bytes


def idempotency_key(*scope: str, body: bytes) -> IdempotencyKey:
    """Builds the key of a request. `scope`: the user, the route and the key that the caller sent."""
    # A NUL occurs in no user, path or header, so different scopes never give the same text.
    text = "\0".join(scope).encode("utf-8", "surrogatepass")
    return IdempotencyKey(sha256(text).digest(), sha256(body).digest())


def once(
    connection: Connection,
    key: IdempotencyKey | None,
    *,
    make: Callable[[], tuple[str, T]],
    find: Callable[[str], T],
) -> T:
    """Calls `make`, which returns an id and its result, or `find` with the id stored by an earlier attempt.

    Raises APIError 422 if the key was used with a different request.
    """
    known = None if key is None else queries.durable.get_idempotency_key(connection, key.digest)
    # Looked up and stored in the transaction of the change, so that one of two concurrent attempts finds the other's.
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
    """Deletes keys older than a day; returns how many."""
    return queries.durable.delete_old_idempotency_keys(
        connection, before=timestamp(max(0.0, now_seconds - _KEPT_SECONDS))
    )
