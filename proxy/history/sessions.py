"""Creates, changes, extends and deletes sessions for callers, inside the writer's transaction."""

from dataclasses import dataclass
from typing import Any

from proxy.errors import APIError, NotFoundError
from proxy.history import deleted_cursors
from proxy.history.branches import find_session, get_message
from proxy.history.serializers import JSON, session_json
from proxy.ids import moment, timestamp, uuid7
from proxy.storage import exchange_store, idempotency, queries, tombstones
from proxy.storage.connection import Connection
from proxy.storage.idempotency import IdempotencyKey
from proxy.storage.queries.sessions import Session
from proxy.wire.message import DEFAULT_TITLE


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPatch:
    """Values to set on a session; None leaves a value unchanged. `metadata` is JSON text."""

    title: str | None = None
    is_active: bool | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """A manually posted message in OpenAI's shape, with its metadata (JSON text)."""

    message: dict[str, Any]
    model: str | None = None
    tokens: int = 0
    metadata: str | None = None


def create_session(
    connection: Connection,
    *,
    user_id: str,
    external_id: str | None,
    given: SessionPatch,
    key: IdempotencyKey | None = None,
) -> JSON:
    """Creates a session; a retry with the same key returns the existing one.

    Raises APIError 409 if the user already has a session with this id.
    """
    return idempotency.once(
        connection,
        key,
        make=lambda: _create_session(connection, user_id=user_id, external_id=external_id, given=given),
        find=lambda made_id: session_json(find_session(connection, made_id, user_id=user_id)),
    )


def _create_session(
    connection: Connection, *, user_id: str, external_id: str | None, given: SessionPatch
) -> tuple[str, JSON]:
    now = timestamp()
    if (
        external_id is not None
        and queries.sessions.find_session_id(connection, id_=external_id, user_id=user_id) is not None
    ):
        raise APIError(
            "There is a session with this id already.",
            status=409,
            type_="invalid_request_error",
            param="session_id",
            code="session_exists",
        )
    # First: the session refers to the user (foreign key).
    queries.users.upsert_user(connection, user_id=user_id, now=now)
    session_id = uuid7()
    queries.sessions.insert_session(
        connection,
        session_id=session_id,
        user_id=user_id,
        external_id=external_id,
        title=given.title or DEFAULT_TITLE,
        metadata=given.metadata,
        now=now,
    )
    return session_id, session_json(find_session(connection, session_id, user_id=user_id))


def update_session(connection: Connection, id_: str, *, user_id: str | None, change: SessionPatch) -> JSON:
    """Changes and returns a session. Raises NotFoundError."""
    session_id = find_session(connection, id_, user_id=user_id).session_id
    # An empty change must not make the session the newest in the lists.
    if change != SessionPatch():
        queries.sessions.update_session(
            connection,
            session_id=session_id,
            title=change.title,
            is_active=change.is_active,
            metadata=change.metadata,
            now=timestamp(),
        )
    return session_json(find_session(connection, session_id, user_id=user_id))


def delete_session(connection: Connection, id_: str, *, user_id: str | None) -> str:
    """Deletes a session with all its data; returns its own id. Chats still streaming do not recreate it.

    Raises NotFoundError.
    """
    session = find_session(connection, id_, user_id=user_id)
    session_id = session.session_id
    for each in filter(None, (session_id, session.external_id)):
        deleted_cursors.sessions.remember(session.user_id, each, (session.updated_at, session_id))
    # In the same transaction: a chat that is still streaming finds the tombstone and is not stored.
    tombstones.add_tombstone(connection, "session", session_id, now=moment())
    queries.sessions.delete_session(connection, session_id)
    return session_id


def append_message(
    connection: Connection,
    id_: str,
    *,
    user_id: str | None,
    new: NewMessage,
    key: IdempotencyKey | None = None,
) -> JSON:
    """Appends a message to the session's main branch and returns it; a retry with the same key returns the stored one.

    Raises NotFoundError.
    """
    session = find_session(connection, id_, user_id=user_id)

    def make() -> tuple[str, JSON]:
        number = exchange_store.append_message(
            connection, session, new.message, model=new.model, tokens=new.tokens, metadata=new.metadata
        )
        made = get_message(connection, number)
        return made["message_id"], made

    return idempotency.once(
        connection, key, make=make, find=lambda made_id: _find_message(connection, session, made_id)
    )


def _find_message(connection: Connection, session: Session, message_id: str) -> JSON:
    number = queries.messages.find_message_no(connection, message_id, session_id=session.session_id)
    if number is None:
        raise NotFoundError("The message was deleted.")
    return get_message(connection, number)
