"""Random conversations, each turn on a random endpoint: one session, every message once, the same in each form."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proxy.wire import anthropic_blocks, hash_chain, responses_items
from tests.dialect_upstream import TOOL_CALL, every_dialect
from tests.fake_upstream import FakeUpstream, fake_upstream
from tests.long import IS_LONG
from tests.serving import running_proxy, settings_for
from tests.wire.corpus import PIXEL
from tests.world import LIMITS

JSON = dict[str, Any]
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
CONTINUED = ("previous_response_id", "conversation")
_EXAMPLES = 300 if IS_LONG else 4


@dataclass(frozen=True)
class Turn:
    """What the client does next: with what it says, or as it was sent before."""

    endpoint: str  # a path, or how a response is continued
    at: int  # which earlier reply it goes on from: 0 is the newest
    is_again: bool
    words: str
    has_image: bool
    instructions: str | None
    is_stream: bool


TURNS = st.builds(
    Turn,
    endpoint=st.sampled_from((CHAT, RESPONSES, MESSAGES, *CONTINUED)),
    at=st.sampled_from((0, 0, 0, 0, 1, 2, 5)),
    is_again=st.sampled_from((False, False, False, True)),
    words=st.sampled_from((TOOL_CALL, TOOL_CALL, "a", "b", "\u65e5\u672c\u8a9e \U0001f600", "<think>c", " \r\n")),
    has_image=st.booleans(),
    instructions=st.sampled_from((None, None, "Be brief.", "Be kind.")),
    is_stream=st.booleans(),
)
TALKS = st.tuples(st.booleans(), st.lists(TURNS, min_size=1, max_size=10))


@dataclass(frozen=True)
class Node:
    """A reply: where its branch ends, and what was sent to get it."""

    leaf: str
    chain: tuple[bytes, ...]
    response_id: str | None
    sent: tuple[str, JSON]


class Client:
    """Goes on from what the server shows, in the form of the endpoint that it asks next."""

    def __init__(self, http: httpx.AsyncClient, upstream: FakeUpstream, *, user: str, session: str | None) -> None:
        self._http = http
        self._upstream = upstream
        self._user = user
        self._headers = {"X-User-Id": user} | ({"X-Session-Id": session} if session else {})
        self.session_id = ""
        self.nodes: list[Node] = []

    async def take(self, turn: Turn) -> None:
        base = self.nodes[-1 - turn.at] if turn.at < len(self.nodes) else None
        again = [node for node in self.nodes[1:] if "conversation" not in node.sent[1]]
        if turn.is_again and again:
            path, body = again[turn.at % len(again)].sent
        else:
            path, body = await self._request(turn, base or (self.nodes[-1] if self.nodes else None))
        reply = await self._http.post(path, json=body, headers=self._headers)
        assert reply.status_code == 200, reply.text
        assert self.session_id in ("", reply.headers["x-session-id"])
        self.session_id = reply.headers["x-session-id"]
        given = self._upstream.calls[-1].json()
        chain = self._chain(path, given)
        newest = (await self._get("branches", limit=1))["branches"][0]["message_id"]
        said = (await self._branch(newest))[-1]
        whole = (*chain, hash_chain.chain_below(chain[-1], [said])[0])
        response_id = f"resp_up{self._upstream.calls[-1].number}" if path == RESPONSES else None
        self.nodes.append(Node(newest, whole, response_id, (path, body)))

    def _chain(self, path: str, given: JSON) -> tuple[bytes, ...]:
        """The chain of what the engine was given."""
        messages: Any = given.get("messages", given.get("input"))
        if path == RESPONSES:
            messages = responses_items.messages_of(messages)
        elif path == MESSAGES:
            messages = anthropic_blocks.messages_of(messages)
        return tuple(hash_chain.chain(self._user, messages))

    async def _request(self, turn: Turn, base: Node | None) -> tuple[str, JSON]:
        """The endpoint and the body of a turn that goes on from a reply."""
        rows = [] if base is None else await self.read("openai", base)
        calls = (rows[-1].get("tool_calls") or []) if rows else []
        ids = [call["id"] for call in calls]
        if turn.endpoint == CHAT:
            results: list[JSON] = [{"role": "tool", "tool_call_id": each, "content": "done"} for each in ids]
            asked: JSON = {"messages": [*_system(turn), *_unprompted(rows), *results, *_chat_user(turn)]}
            return CHAT, {"model": "m", "stream": turn.is_stream, **asked}
        if turn.endpoint == MESSAGES:
            history = [] if base is None else await self.read("anthropic", base)
            blocks: list[JSON] = [{"type": "tool_result", "tool_use_id": each, "content": "done"} for each in ids]
            system = {"system": turn.instructions} if turn.instructions else {}
            messages = [*_unprompted(history), {"role": "user", "content": [*blocks, *_blocks(turn)]}]
            return MESSAGES, {"model": "m", "max_tokens": 9, "stream": turn.is_stream, "messages": messages, **system}
        items: list[JSON] = [{"type": "function_call_output", "call_id": each, "output": "done"} for each in ids]
        items.append({"type": "message", "role": "user", "content": _parts(turn)})
        body: JSON = {"model": "m", "stream": turn.is_stream, "instructions": turn.instructions}
        if turn.endpoint == "previous_response_id" and base is not None and base.response_id:
            return RESPONSES, {**body, "input": items, "previous_response_id": base.response_id}
        if turn.endpoint == "conversation" and base is not None and base is self.nodes[-1]:
            return RESPONSES, {**body, "input": items, "conversation": f"conv_{self.session_id}"}
        history = [] if base is None else await self.read("responses", base)
        return RESPONSES, {**body, "input": [*_unprompted(history), *items]}

    async def read(self, form: str, node: Node) -> list[JSON]:
        """The conversation up to a reply, which may have been continued since."""
        rows = await self._branch(node.leaf)
        places = [place for place, row in enumerate(rows) if row["role"] != "system"]
        end = places[len(node.chain) - 1] + 1
        return rows[:end] if form == "openai" else await self._branch(node.leaf, format=form, limit=end)

    async def _branch(self, leaf: str, **query: Any) -> list[JSON]:
        asked = {"format": "openai", "limit": 1000, **query}
        found: list[JSON] = (await self._get("messages", branch=leaf, **asked))["messages"]
        return found

    async def _get(self, what: str, **query: Any) -> JSON:
        reply = await self._http.get(f"/v1/sessions/{self.session_id}/{what}", params=query, headers=self._headers)
        assert reply.status_code == 200, reply.text
        found: JSON = reply.json()
        return found

    async def assert_all_is_there_once(self) -> None:
        """Every reply's branch is the same in each form; what is stored is what was said, each message once."""
        for node in self.nodes:
            rows, messages = await self.read("openai", node), await self.read("anthropic", node)
            items = await self.read("responses", node)
            assert self._chain(CHAT, {"messages": rows}) == node.chain
            assert self._chain(RESPONSES, {"input": items}) == node.chain
            assert self._chain(MESSAGES, {"messages": messages}) == node.chain
        listed = await self._http.get("/v1/sessions", headers=self._headers)
        [session] = listed.json()["sessions"]
        exported = await self._http.get(f"/v1/sessions/{self.session_id}/export", headers=self._headers)
        roles = [json.loads(line).get("role") for line in exported.text.splitlines()]
        assert session["message_count"] == len([role for role in roles if role])
        said_once = {digest for node in self.nodes for digest in node.chain}
        assert len([role for role in roles if role not in (None, "system")]) == len(said_once)


def _system(turn: Turn) -> list[JSON]:
    return [{"role": "system", "content": turn.instructions}] if turn.instructions else []


def _unprompted(messages: Sequence[JSON]) -> list[JSON]:
    return [message for message in messages if message.get("role") != "system"]


def _chat_user(turn: Turn) -> list[JSON]:
    image = {"type": "image_url", "image_url": {"url": PIXEL}}
    content = [{"type": "text", "text": turn.words}, image] if turn.has_image else turn.words
    return [{"role": "user", "content": content}]


def _parts(turn: Turn) -> list[JSON]:
    image = {"type": "input_image", "image_url": PIXEL, "detail": "auto"}
    return [{"type": "input_text", "text": turn.words}, *([image] if turn.has_image else [])]


def _blocks(turn: Turn) -> list[JSON]:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL.partition(",")[2]}
    image = {"type": "image", "source": source}
    return [{"type": "text", "text": turn.words}, *([image] if turn.has_image else [])]


def test_a_conversation_on_any_endpoints_is_one_and_is_stored_once(tmp_path: Path) -> None:
    played = 0
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def opened() -> tuple[httpx.AsyncClient, FakeUpstream]:
            upstream = await stack.enter_async_context(fake_upstream())
            upstream.on("*", every_dialect())
            upstream.on(CHAT, every_dialect())
            url = await stack.enter_async_context(running_proxy(settings_for(tmp_path, upstream_url=upstream.url)))
            return await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30, limits=LIMITS)), upstream

        async def play(is_named: bool, turns: list[Turn]) -> None:
            client = Client(http, upstream, user=f"user {played}", session="named" if is_named else None)
            for turn in turns:
                await client.take(turn)
            await client.assert_all_is_there_once()

        @settings(
            max_examples=_EXAMPLES,
            deadline=None,
            derandomize=not IS_LONG,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # making a failure smaller takes minutes
        )
        @given(TALKS)
        def replay(talk: tuple[bool, list[Turn]]) -> None:
            nonlocal played
            played += 1
            runner.run(play(*talk))

        http, upstream = runner.run(opened())
        try:
            replay()
        finally:
            runner.run(stack.aclose())
