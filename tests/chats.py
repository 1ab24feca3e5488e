"""Chats stored straight through the archive, as the recorder does it, for tests of what is stored and read back."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from proxy.history import branches
from proxy.ids import timestamp, uuid7
from proxy.recording.transactions import commit
from proxy.storage import exchange_store, queries, session_lookup
from proxy.storage.connection import Connection
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.storage.foreseen import Foreseen
from proxy.storage.page import Page
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.wire.chat_reply import Completion
from tests.engines import connected

Message = dict[str, Any]
ALL = Page(limit=1000)


def listed(connection: Connection, session_id: str, **asked: Any) -> dict[str, Any]:
    """A page of a branch, read in pieces as the routes read it."""
    return _read(connection, branches.open_messages(connection, session_id, **asked))


def listed_ready(connection: Connection, session_id: str, **asked: Any) -> dict[str, Any]:
    """The same as OpenAI messages."""
    return _read(connection, branches.open_openai_messages(connection, session_id, **asked))


def _read(connection: Connection, page: branches.OpenPage) -> dict[str, Any]:
    messages: list[Message] = []
    position = 0
    while position < len(page.numbers):
        texts, position = branches.read_piece(connection, page.numbers, start=position, show=page.show)
        messages += map(json.loads, texts)
    return {"messages": messages, "total": page.total, "session_info": page.session}


def user(content: Any) -> Message:
    """A user's message."""
    return {"role": "user", "content": content}


def said(content: Any, **others: Any) -> Message:
    """A reply."""
    return {"role": "assistant", "content": content, **others}


def system(content: str) -> Message:
    """A system message."""
    return {"role": "system", "content": content}


def body_of(*replies: Message, tokens: int = 3) -> bytes:
    """A whole reply of upstream, a choice a message."""
    choices = [{"index": i, "message": reply, "finish_reason": "stop"} for i, reply in enumerate(replies)]
    return json.dumps({"id": "c", "choices": choices, "usage": {"completion_tokens": tokens}}).encode()


def exchange_of(messages: Sequence[Message], session: SessionRef, *, user_id: str = "u") -> Exchange:
    """A request of these messages."""
    return Exchange(
        user_id=user_id,
        session=session,
        endpoint="/v1/chat/completions",
        request_id="r",
        request={"model": "m", "messages": list(messages)},
    )


def store_all(connection: Connection, chats: Sequence[tuple[Exchange, Outcome]]) -> None:
    """Store exchanges in one transaction, as the recorder does."""
    works = [
        Foreseen(partial(exchange_store.finish, exchange=exchange, outcome=outcome), exchange)
        for exchange, outcome in chats
    ]
    for result in commit(connection, works):
        if isinstance(result, BaseException):
            raise result


class Chats:
    """An open database that chats are stored in."""

    def __init__(self, place: Path | str) -> None:
        """`place`: a file, or the URL of a PostgreSQL database."""
        # Typed as SQLite's: what tests ask by SQL text, both take.
        self.connection: SqliteConnection = connected(place)

    @classmethod
    def on(cls, connection: Any) -> "Chats":
        """Chats on a connection that is open."""
        chats = cls.__new__(cls)
        chats.connection = connection
        return chats

    def store(
        self, messages: Sequence[Message], *replies: Message, session: str | None = None, user_id: str = "u"
    ) -> str:
        """Store a chat where the route would: in the named session, the one it continues, or a new one; its id."""
        return self.finish(self.begin(messages, session=session, user_id=user_id), *replies)

    def begin(self, messages: Sequence[Message], *, session: str | None = None, user_id: str = "u") -> Exchange:
        """A chat whose session is known and whose reply is still coming."""
        found = self.stitched(messages, user_id=user_id) if session is None else self.named(session, user_id=user_id)
        external_id = session if found is None else None
        return exchange_of(messages, SessionRef(found or uuid7(), "test", external_id), user_id=user_id)

    def finish(self, exchange: Exchange, *replies: Message) -> str:
        """Store it with its reply, or as refused where there is none; its session's id."""
        reply = Completion.from_body(body_of(*replies)) if replies else None
        outcome = Outcome(status="completed" if replies else "failed", http_status=200, reply=reply)
        store_all(self.connection, [(exchange, outcome)])
        row = queries.exchanges.get_exchange(self.connection, exchange.exchange_id)
        assert row is not None
        return row.session_id

    def stitched(self, messages: Sequence[Message], *, user_id: str = "u") -> str | None:
        """The session that these messages continue."""
        exchange = exchange_of(messages, SessionRef(uuid7(), "new"), user_id=user_id)
        places = session_lookup.list_stitched(self.connection, exchange)
        return places[0].session_id if places else None

    def named(self, id_: str, *, user_id: str = "u") -> str | None:
        """The session of a client's id."""
        return queries.sessions.find_session_id(self.connection, id_=id_, user_id=user_id)

    def make(self, *contents: str, user_id: str = "u") -> str:
        """A session of messages posted by hand; its id."""
        session_id = uuid7()
        with self.connection.transaction():
            now = timestamp()
            queries.users.upsert_user(self.connection, user_id=user_id, now=now)
            queries.sessions.insert_session(
                self.connection,
                session_id=session_id,
                user_id=user_id,
                external_id=None,
                title="t",
                metadata=None,
                now=now,
            )
            for content in contents:
                self.post(session_id, user(content))
        return session_id

    def post(self, session_id: str, message: Message) -> None:
        """Store a message by hand."""
        session = queries.sessions.get_session(self.connection, session_id)
        assert session is not None
        exchange_store.append_message(self.connection, session, message)

    def count(self, table: str) -> int:
        """How many rows a table has."""
        number: int = self.connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
        return number

    def shown(self, session_id: str, **options: Any) -> list[Message]:
        """A branch as the routes show it."""
        page = listed(self.connection, session_id, user_id=None, page=ALL, **options)
        messages: list[Message] = page["messages"]
        return messages

    def ready(self, session_id: str, **options: Any) -> list[Message]:
        """A branch as OpenAI messages."""
        page = listed_ready(self.connection, session_id, user_id=None, page=ALL, **options)
        messages: list[Message] = page["messages"]
        return messages

    def texts(self, session_id: str, **options: Any) -> list[Any]:
        """What is said on a branch."""
        return [message["content"] for message in self.shown(session_id, **options)]
