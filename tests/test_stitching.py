"""One conversation, stored once: through the real server, with clients that send no id, or one that means little."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.wire import hash_chain
from tests.chats import Message, said, system, user
from tests.fake_upstream import FakeUpstream, fake_upstream
from tests.serving import server_process
from tests.world import CHAT, World, as_told, open_world

IMAGE = "data:image/png;base64," + "A" * 5000


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(stack, tmp_path)


# --- random trees, by several clients at once


@dataclass(frozen=True)
class Turn:
    """What one client does next. The words are few, so that histories collide."""

    client: int
    act: str
    at: int
    words: str
    answer: str
    instructions: str | None
    as_parts: bool
    is_stream: bool


@dataclass
class Client:
    """What a client shows on its screen."""

    name: str | None
    history: list[Message] = field(default_factory=list)

    def take(self, turn: Turn, others: Sequence["Client"]) -> list[Message]:
        """Do the turn: the messages to be sent, which end with a user's."""
        if turn.act == "join" and others[turn.at % len(others)].history:
            other = others[turn.at % len(others)]
            self.name, self.history = other.name, list(other.history)
        asked = [index for index, message in enumerate(self.history) if message["role"] == "user"]
        if turn.act == "edit" and asked[1:]:
            # The first turn stays: with an id and no reply, a new first turn and a lone new turn are the same request.
            del self.history[asked[1:][turn.at % len(asked[1:])] :]
        if turn.act == "again" and asked:
            del self.history[asked[-1] + 1 :]
        else:
            content = [{"type": "text", "text": turn.words}] if turn.as_parts else turn.words
            self.history.append(user(content))
        return [system(turn.instructions), *self.history] if turn.instructions else list(self.history)


TURNS = st.builds(
    Turn,
    client=st.integers(0, 3),
    act=st.sampled_from(("go on", "go on", "go on", "again", "edit", "join")),
    at=st.integers(0, 5),
    words=st.sampled_from(("a", "b", "c")),
    answer=st.sampled_from(("x", "y")),
    instructions=st.sampled_from((None, "one", "two")),
    as_parts=st.booleans(),
    is_stream=st.booleans(),
)
ROUNDS = st.lists(st.lists(TURNS, min_size=1, max_size=4, unique_by=lambda turn: turn.client), max_size=8)


def comparable(messages: Sequence[Message]) -> list[str]:
    """Messages without what clients rewrite."""
    return [hash_chain.canonical(message).decode() for message in messages]


async def play(world: World, number: int, rounds: Sequence[Sequence[Turn]]) -> None:
    """Play the rounds, the turns of each at once, and read every leaf back."""
    user_id = f"user {number}"
    clients = [Client(f"named-{index}" if index % 2 else None) for index in range(4)]
    exchanges: dict[str, list[Message]] = {}

    async def send(client: Client, turn: Turn, messages: list[Message]) -> None:
        reply = said(turn.answer)
        response = await world.chat(messages, reply, user_id=user_id, session=client.name, stream=turn.is_stream)
        exchanges[response.headers["x-request-id"]] = [*messages, reply]
        client.history.append(reply)

    for turns in rounds:
        pending = [(clients[turn.client], turn, clients[turn.client].take(turn, clients)) for turn in turns]
        await asyncio.gather(*(send(*each) for each in pending))
    leaves = world.rows(LEAVES, user_id)
    for request_id, session_id, message_id in leaves:
        read = await world.read(session_id, user_id, branch=message_id)
        assert comparable(read) == comparable(exchanges[request_id])


LEAVES = """
    SELECT COALESCE(e.request_id, e.exchange_id), m.session_id, m.message_id
    FROM messages AS m JOIN exchanges AS e USING (exchange_no) JOIN users AS u USING (user_no)
    WHERE u.user_id = ? AND m.role = 'assistant'
      AND NOT EXISTS (SELECT 1 FROM messages AS c WHERE c.parent_no = m.message_no)
"""


def test_every_leaf_reads_back_what_its_client_sent_and_received(tmp_path: Path) -> None:
    played = 0
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        world = runner.run(open_world(stack, tmp_path))

        @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(ROUNDS)
        def replay(rounds: list[list[Turn]]) -> None:
            nonlocal played
            played += 1
            runner.run(play(world, played, rounds))

        try:
            replay()
        finally:
            runner.run(stack.aclose())


# --- one by one


async def talk(world: World, *words: str, **options: Any) -> tuple[str, list[Message]]:
    """A conversation that resends its history each turn: its session and what it holds."""
    history: list[Message] = []
    for word in words:
        history.append(user(word))
        response = await world.chat(history, said(f"on {word}"), **options)
        history.append(said(f"on {word}"))
    return response.headers["x-session-id"], history


async def test_conversation_without_an_id_is_one_session(world: World) -> None:
    history: list[Message] = []
    sources = []
    for word in ("a", "b", "c", "d"):
        history.append(user(word))
        response = await world.chat(history, said(f"on {word}"))
        history.append(said(f"on {word}"))
        sources.append(response.headers["x-session-source"])
    assert sources == ["new", "stitched", "stitched", "stitched"]
    assert await world.read(response.headers["x-session-id"]) == history
    assert (world.count("sessions"), world.count("messages"), world.count("exchanges")) == (1, 8, 4)


async def test_two_conversations_that_begin_alike_stay_apart(world: World) -> None:
    begin = [user("hi"), said("hello")]
    histories = [list(begin) for _ in range(12)]
    for _ in histories:
        await world.chat(begin[:1], begin[1])
    for turn in range(2):
        for number, history in enumerate(histories):
            history.append(user(f"turn {turn} of {number}"))
            response = await world.chat(history, said("ok"))
            assert response.headers["x-session-source"] == "stitched"
            history.append(said("ok"))
    assert world.count("sessions") == len(histories)
    read = [await world.read(session_id) for (session_id,) in world.rows("SELECT session_id FROM sessions")]
    assert sorted(map(str, read)) == sorted(map(str, histories))


async def test_conversations_that_begin_alike_stay_apart_when_they_race(world: World) -> None:
    begin = [user("hi"), said("hello")]
    await asyncio.gather(*(world.chat(begin[:1], begin[1]) for _ in range(6)))
    histories = [[*begin, user(f"I am {number}")] for number in range(6)]
    await asyncio.gather(*(world.chat(history, said("ok")) for history in histories))
    assert world.count("sessions") == 6
    read = [await world.read(session_id) for (session_id,) in world.rows("SELECT session_id FROM sessions")]
    assert sorted(map(str, read)) == sorted(str([*history, said("ok")]) for history in histories)


async def test_another_users_conversation_is_not_continued(world: World) -> None:
    (first,) = await world.sources([user("a")], user_id="alice")
    (second,) = await world.sources([user("a"), said("ok"), user("b")], user_id="bob")
    assert second[1] == "new"
    assert first[0] != second[0]


async def test_regenerated_reply_and_edited_turn_are_branches(world: World) -> None:
    session_id, history = await talk(world, "a", "b")
    sources = await world.sources(history[:3], [*history[:2], user("b, better")])
    assert sources == [(session_id, "stitched")] * 2
    shown = await world.read(session_id, format=None)
    assert [(message["content"], message["siblings"]) for message in shown] == [
        ("a", 1),
        ("on a", 1),
        ("b, better", 2),
        ("ok", 1),
    ]
    (reply,) = world.rows("SELECT message_id FROM messages WHERE content = 'on b'")
    old = await world.read(session_id, format=None, branch=reply[0])
    assert [(message["content"], message["siblings"]) for message in old[2:]] == [("b", 2), ("on b", 2)]
    assert world.count("messages") == 7


async def test_each_of_several_choices_is_a_message(world: World) -> None:
    response = await world.chat([user("a")], said("one"), said("two"), n=2)
    session_id = response.headers["x-session-id"]
    assert [m["siblings"] for m in await world.read(session_id, format=None)] == [1, 2]
    history = [user("a"), said("two"), user("b")]
    assert await world.sources(history) == [(session_id, "stitched")]
    assert await world.read(session_id) == [*history, said("ok")]
    assert world.count("messages") == 5


async def test_two_clients_continue_from_the_same_point(world: World) -> None:
    session_id, history = await talk(world, "a")
    turns = [[*history, user(word)] for word in ("left", "right")]
    answers = await asyncio.gather(*(world.chat(turn, said("ok")) for turn in turns))
    assert {answer.headers["x-session-id"] for answer in answers} == {session_id}
    shown = await world.read(session_id, format=None)
    assert [message["siblings"] for message in shown] == [1, 1, 2, 1]
    assert world.count("messages") == 6


async def test_lone_new_turns_with_an_id_follow_each_other(world: World) -> None:
    for word in ("a", "b", "c"):
        response = await world.chat([system("be kind"), user(word)], said(f"on {word}"), session="mine")
        assert response.headers["x-session-source"] == "header"
    expected = [system("be kind")] + [m for word in "abc" for m in (user(word), said(f"on {word}"))]
    assert await world.read("mine") == expected
    assert (world.count("sessions"), world.count("messages")) == (1, 7)


async def test_client_with_an_id_that_drops_its_old_turns(world: World) -> None:
    _, history = await talk(world, *"abcd", session="mine")
    for word in "efgh":
        history.append(user(word))
        await world.chat(history[-5:], said(f"on {word}"), session="mine")
        history.append(said(f"on {word}"))
    assert await world.read("mine") == history
    assert (world.count("sessions"), world.count("messages")) == (1, 16)


@pytest.mark.parametrize("session", (None, "mine"))
async def test_system_prompt_that_changes_each_turn_does_not_split_a_session(world: World, session: str | None) -> None:
    history: list[Message] = []
    for turn in range(4):
        history.append(user(f"turn {turn}"))
        response = await world.chat([system(f"it is {turn} o'clock"), *history], said("ok"), session=session)
        history.append(said("ok"))
    session_id = response.headers["x-session-id"]
    assert await world.read(session_id) == [system("it is 3 o'clock"), *history]
    shown = await world.read(session_id, format=None)
    assert [m["content"] for m in shown if m["role"] == "system"] == [f"it is {turn} o'clock" for turn in range(4)]
    assert (world.count("sessions"), world.count("messages")) == (1, 12)


async def test_alternatives_are_counted_across_a_changed_system_prompt(world: World) -> None:
    for hour in (1, 2, 3):
        response = await world.chat([system(f"it is {hour}"), user("a")], said(f"at {hour}"), session="mine")
    session_id = response.headers["x-session-id"]
    for (message_id,) in world.rows("SELECT message_id FROM messages WHERE role = 'assistant'"):
        shown = await world.read(session_id, format=None, branch=message_id)
        assert [m["siblings"] for m in shown if m["role"] != "system"] == [1, 3]


async def test_tool_turn_is_linked_however_its_arguments_are_spaced(world: World) -> None:
    def called(arguments: str, **others: Any) -> Message:
        function = {"name": "add", "arguments": arguments}
        return said(None, tool_calls=[{"id": "c1", "type": "function", "function": function}], **others)

    result = {"role": "tool", "tool_call_id": "c1", "content": "5"}
    response = await world.chat([user("2+3?")], called('{"a": 2, "b": 3}', reasoning="a sum"))
    resent = called('{"a":2,"b":3}', refusal=None)
    sources = await world.sources([user("2+3?"), {**resent, "content": ""}, result])
    assert sources == [(response.headers["x-session-id"], "stitched")]
    kept = called('{"a": 2, "b": 3}', reasoning="a sum")
    assert await world.read(sources[0][0]) == [user("2+3?"), kept, result, said("ok")]
    assert world.count("messages") == 4


async def test_image_is_stored_once_for_all_and_goes_with_its_last_message(world: World) -> None:
    picture = user([{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": IMAGE}}])
    (first, _), _ = await world.sources([picture], [picture, said("ok"), user("sure?")])
    ((second, _),) = await world.sources([picture], user_id="bob")
    assert await world.read(first) == [picture, said("ok"), user("sure?"), said("ok")]
    assert world.count("blobs") == 1
    for session_id, user_id, left in ((first, "u", 1), (second, "bob", 0)):
        response = await world.client.delete(f"/v1/sessions/{session_id}", headers={"X-User-Id": user_id})
        assert response.status_code == 200
        assert world.count("blobs") == left


async def test_stitching_can_be_turned_off(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        world = await open_world(stack, tmp_path, stitching=False)
        sources = await world.sources([user("a")], [user("a"), said("ok"), user("b")])
        assert [source for _, source in sources] == ["new", "new"]
        assert world.count("sessions") == 2
        named = await world.sources([user("a")], [user("a"), said("ok"), user("b")], session="mine")
        assert named[0] == named[1]
        assert world.count("messages") == 10


# --- several conversations under one id


@dataclass
class Agent:
    """A client of one conversation: it resends its history, or sends only what is new."""

    name: str
    instructions: Message | None
    is_lone: bool = False
    history: list[Message] = field(default_factory=list)

    def ask(self) -> list[Message]:
        """The next request."""
        self.history.append(user(f"{self.name} asks {len(self.history)}"))
        sent = self.history[-1:] if self.is_lone else self.history
        return [self.instructions, *sent] if self.instructions else list(sent)

    def whole(self) -> list[Message]:
        """What its branch has to read back as."""
        return [self.instructions, *self.history] if self.instructions else list(self.history)


KINDS = ("agent", "agent without a system message", "agent with the same system message", "title", "lone")
ACTS = st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=5, unique=True), min_size=1, max_size=6)


def make_agent(number: int, kind: str) -> Agent:
    """A client whose words nobody else says."""
    prompts = {
        "agent": (
            "You look for files",
            "Plan the work",
            "Tests are yours",
            "Draw what was said",
            "Tell jokes",
            "Sort it",
        )[number],
        "agent with the same system message": "All of us have read this",
        "title": "You make titles of a few words",
        "lone": "One turn at a time",
    }
    return Agent(f"{kind} {number}", system(prompts[kind]) if kind in prompts else None, is_lone=kind == "lone")


async def play_agents(world: World, number: int, kinds: Sequence[str], rounds: Sequence[Sequence[int]]) -> None:
    """Let agents race under one id, or under none, then have each be resent once more, and read every leaf."""
    user_id, session = f"agents {number}", "shared" if number % 3 else None
    agents = [make_agent(index, kind) for index, kind in enumerate(kinds) if session or kind != "lone"]
    exchanges = 0

    async def turn(agent: Agent) -> None:
        nonlocal exchanges
        if agent.name.startswith("title") and agent.history:
            return
        exchanges += 1
        reply = said(f"{agent.name} is told {len(agent.history)}")
        await world.chat(agent.ask(), reply, user_id=user_id, session=session, stream=bool(exchanges % 2))
        agent.history.append(reply)

    for indexes in [*rounds, range(len(agents))]:
        await asyncio.gather(*(turn(agents[index]) for index in indexes if index < len(agents)))
    for agent in agents:  # one after the other, so that each is known by what it resends
        await turn(agent)
    read = [
        await world.read(session_id, user_id, branch=message_id)
        for _, session_id, message_id in world.rows(LEAVES, user_id)
    ]
    assert sorted(map(str, read)) == sorted(str(agent.whole()) for agent in agents)
    said_once = {str(message) for agent in agents for message in agent.whole()}
    stored = world.rows("SELECT COUNT(*) FROM messages JOIN sessions USING (session_id) WHERE user_id = ?", user_id)
    systems = [str(agent.instructions) for agent in agents if agent.instructions]
    unshared = 0 if session else len(systems) - len(set(systems))  # without an id each has a session of its own
    assert stored[0][0] == len(said_once) + unshared


def test_agents_that_race_under_one_id_read_back_what_each_said(tmp_path: Path) -> None:
    played = 0
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        world = runner.run(open_world(stack, tmp_path))

        @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(st.lists(st.sampled_from(KINDS), min_size=2, max_size=6), ACTS)
        def replay(kinds: list[str], rounds: list[list[int]]) -> None:
            nonlocal played
            played += 1
            # Of those that never resend anything, two under one id cannot be told apart.
            told_apart = [k for index, k in enumerate(kinds) if k not in ("lone", "title") or k not in kinds[:index]]
            runner.run(play_agents(world, played, told_apart, rounds))

        try:
            replay()
        finally:
            runner.run(stack.aclose())


@pytest.mark.parametrize("session", ("s", None))
@pytest.mark.parametrize("titles_at", (0, 1))
async def test_equal_title_requests_are_branches_under_an_id_and_else_sessions(
    world: World, session: str | None, titles_at: int
) -> None:
    agent = [system("You are a coding agent."), user("hello there")]
    title = [system("You are a title generator. Output only a title."), user("Generate a title for: hello there")]
    steps = [(agent, "hi"), (title, "Greeting"), (title, "Welcome")]
    for messages, answer in steps if titles_at else [*steps[1:], steps[0]]:
        await world.chat(messages, said(answer), session=session)
    agent += [said("hi"), user("go on")]
    await world.chat(agent, said("ok"), session=session)
    leaves = world.rows(LEAVES, "u")
    read = [await world.read(session_id, branch=message_id) for _, session_id, message_id in leaves]
    whole = [[*agent, said("ok")], [*title, said("Greeting")], [*title, said("Welcome")]]
    assert sorted(map(str, read)) == sorted(map(str, whole))
    shown = (await world.client.get("/v1/sessions", headers={"X-User-Id": "u"})).json()["sessions"]
    titles = sorted(each["title"] for each in shown)
    assert titles == (["hello there"] if session else ["Generate a title for: hello there"] * 2 + ["hello there"])
    assert world.count("messages") == (9 if session else 11)


# --- requests that are sent again


@pytest.mark.parametrize("count", ("0", "1"))
async def test_retry_belongs_to_its_session_whichever_worker_answers(tmp_path: Path, count: str) -> None:
    upstream: FakeUpstream
    async with fake_upstream() as upstream, AsyncExitStack() as stack:
        upstream.on(CHAT, as_told)
        other = stack.enter_context(server_process(tmp_path, upstream.url, "--workers", "2"))
        seen = set()
        for number in range(8):  # each on a connection of its own, so that both workers get some
            headers = {"X-User-Id": "u", "x-stainless-retry-count": count if number else "0"}
            async with httpx.AsyncClient(base_url=other.url, timeout=20) as client:
                body = {"model": "m", "messages": [user("again?")], "fail": 500}
                response = await client.post(CHAT, json=body, headers=headers)
            assert response.status_code == 500
            seen.add(response.headers["x-session-id"])
        async with httpx.AsyncClient(base_url=other.url, timeout=20) as client:
            body = {"model": "m", "messages": [user("again?")], "told": [said("yes")]}
            response = await client.post(CHAT, json=body, headers={"X-User-Id": "u"})
            seen.add(response.headers["x-session-id"])
            for user_id, words in (("u", "else?"), ("v", "again?")):
                body = {"model": "m", "messages": [user(words)], "told": [said("yes")]}
                response = await client.post(CHAT, json=body, headers={"X-User-Id": user_id})
                assert response.headers["x-session-id"] not in seen
                assert response.headers["x-session-source"] == "new"
        assert len(seen) == 1


async def test_retry_after_a_restart_belongs_to_its_session(tmp_path: Path) -> None:
    seen = []
    for count in ("0", "1"):
        async with AsyncExitStack() as stack:
            world = await open_world(stack, tmp_path)
            failing = {"model": "m", "messages": [user("again?")], "fail": 500}
            headers = {"X-User-Id": "u", "x-stainless-retry-count": count}
            seen.append((await world.client.post(CHAT, json=failing, headers=headers)).headers["x-session-id"])
    assert seen[0] == seen[1]


async def test_retry_of_a_failure_that_is_not_stored_yet_belongs_to_its_session(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        world = await open_world(stack, tmp_path, commit_timeout_seconds=0.2)
        lock = stack.enter_context(closing(sqlite3.connect(world.database, isolation_level=None)))
        lock.execute("BEGIN IMMEDIATE")  # what fails now waits, and then goes to the spill file
        failing = {"model": "m", "messages": [user("again?")], "fail": 500}
        first = await world.client.post(CHAT, json=failing, headers={"X-User-Id": "u"})
        second = await world.client.post(CHAT, json=failing, headers={"X-User-Id": "u"})
        lock.execute("ROLLBACK")
        ((session_id, source),) = await world.sources([user("again?")])
        assert {first.headers["x-session-id"], second.headers["x-session-id"]} == {session_id}
        assert source == "stitched"
        async with asyncio.timeout(20):
            while world.count("exchanges") < 3:
                await asyncio.sleep(0.05)
        assert await world.read(session_id) == [user("again?"), said("ok")]
        assert (world.count("sessions"), world.count("messages")) == (1, 2)


@pytest.mark.parametrize("before", ([], [user("q"), said("ok")]))
async def test_retries_of_a_failed_request_belong_to_its_session(tmp_path: Path, before: list[Message]) -> None:
    async with AsyncExitStack() as stack:
        world = await open_world(stack, tmp_path)
        if before:
            await world.sources(before[:1])
        messages = [*before, user("again?")]
        failing = {"model": "m", "messages": messages, "fail": 500}
        headers = {"X-User-Id": "u"}
        sessions = []
        for count in ("0", "1", "2"):
            response = await world.client.post(CHAT, json=failing, headers=headers | {"x-stainless-retry-count": count})
            assert response.status_code == 500
            sessions.append(response.headers["x-session-id"])
        ((session_id, source),) = await world.sources(messages)
        assert (set(sessions), source) == ({session_id}, "stitched")
        assert await world.read(session_id) == [*messages, said("ok")]
        assert world.count("sessions") == 1
        # Another user's request, another question, and the same once it was answered, are new.
        await world.sources([user("again?")], user_id="v")
        await world.sources([user("something else")])
        assert world.count("sessions") == 3
        if not before:
            await world.sources(messages)
            assert world.count("sessions") == 4
