"""The proxy in front of a model that says what it is told, for tests of what many requests leave behind."""

import sqlite3
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.chats import Message, said
from tests.fake_upstream import (
    DONE,
    Call,
    FakeUpstream,
    Wire,
    chat_chunk,
    chat_completion,
    event,
    fake_upstream,
    sse,
    whole_json,
)
from tests.serving import running_proxy, settings_for

CHAT = "/v1/chat/completions"

# A property test rests for seconds between two requests, longer than a server keeps a connection open.
LIMITS = httpx.Limits(max_keepalive_connections=0)


async def as_told(call: Call, wire: Wire) -> None:
    """A model that says what the request's `told` holds, or repeats the last message."""
    request = call.json()
    if request.get("fail"):
        await whole_json({"error": {"message": "no"}}, status=request["fail"])(call, wire)
        return
    told = request.get("told") or [said(f"you said {request['messages'][-1]['content']}")]
    if request.get("stream"):
        chunks = [event(chat_chunk(call.number, message, index=index)) for index, message in enumerate(told)]
        ends = [event(chat_chunk(call.number, {}, index=index, finish_reason="stop")) for index in range(len(told))]
        await sse([*chunks, *ends, DONE])(call, wire)
    else:
        await whole_json(chat_completion(call.number, told))(call, wire)


@dataclass
class World:
    """The proxy in front of a model that says what it is told, and the file it writes."""

    client: httpx.AsyncClient
    database: Path

    async def chat(
        self, messages: Sequence[Message], *told: Message, user_id: str = "u", session: str | None = None, **fields: Any
    ) -> httpx.Response:
        """One request, whose reply is `told`."""
        headers = {"X-User-Id": user_id} | ({"X-Session-Id": session} if session else {})
        body = {"model": "m", "messages": list(messages), "told": list(told), **fields}
        response = await self.client.post(CHAT, json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response

    async def sources(self, *chats: Sequence[Message], **options: Any) -> list[tuple[str, str]]:
        """Session and source of chats sent one after the other, each answered with `said("ok")`."""
        answers = [await self.chat(messages, said("ok"), **options) for messages in chats]
        return [(answer.headers["x-session-id"], answer.headers["x-session-source"]) for answer in answers]

    async def read(self, session_id: str, user_id: str = "u", **options: Any) -> list[Message]:
        """A branch as OpenAI messages, or as the session routes show it with `format=None`."""
        parameters = {"limit": 1000, "format": "openai", **options}
        response = await self.client.get(
            f"/v1/sessions/{session_id}/messages",
            params={name: value for name, value in parameters.items() if value is not None},
            headers={"X-User-Id": user_id},
        )
        assert response.status_code == 200, response.text
        messages: list[Message] = response.json()["messages"]
        return messages

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What another program finds in the file."""
        with closing(sqlite3.connect(self.database)) as connection:
            return connection.execute(sql, parameters).fetchall()

    def count(self, table: str) -> int:
        """How many rows a table has."""
        count: int = self.rows(f"SELECT COUNT(*) FROM {table}")[0][0]
        return count


async def open_world(stack: AsyncExitStack, folder: Path, **changes: Any) -> World:
    """A world that lasts as long as the stack."""
    upstream: FakeUpstream = await stack.enter_async_context(fake_upstream())
    upstream.on(CHAT, as_told)
    url = await stack.enter_async_context(running_proxy(settings_for(folder, upstream_url=upstream.url, **changes)))
    client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=10, limits=LIMITS))
    return World(client, folder / "stellarchat.db")
