"""Several conversations in one session: each keeps a chain of its own, and reads back as it was sent."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.maintenance.check import OF_FILES, steps
from proxy.storage import exchange_store, queries
from proxy.storage.exchange import Outcome
from proxy.storage.write_batch import write_batch
from tests.chats import Chats, Message, said, system, user
from tests.engines import ENGINES, place_of

MAIN, SUB, TITLES = (system(f"You are {what}") for what in ("the main agent", "a sub-agent", "a maker of titles"))


@pytest.fixture(params=ENGINES)
def chats(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chats]:
    with place_of(request.param, tmp_path / "test.db") as place:
        opened = Chats(place)
        yield opened
        is_file = request.param == "sqlite"
        looked_for = [step for kind, step in steps(tmp_path / "test.db") if is_file or kind not in OF_FILES]
        problems = [problem for step in looked_for for problem in step(opened.connection)]
        opened.connection.close()
    assert problems == []


class Agent:
    """A client that resends its history under the session's id."""

    def __init__(self, chats: Chats, name: str, instructions: Message | None = None, session: str = "s") -> None:
        self.chats, self.name, self.session = chats, name, session
        self.history: list[Message] = [instructions] if instructions else []
        self.turns = 0

    def turn(self) -> str:
        """Ask and be answered; the session's id."""
        self.turns += 1
        self.history.append(user(f"{self.name} asks {self.turns}"))
        reply = said(f"{self.name} is told {self.turns}")
        session_id = self.chats.store(self.history, reply, session=self.session)
        self.history.append(reply)
        return session_id


def leaves(chats: Chats, session_id: str) -> list[list[Message]]:
    """Every branch of a session as it is sent, newest first."""
    rows = queries.export.list_leaves(chats.connection, session_id)
    return [chats.ready(session_id, through=row["message_id"]) for row in reversed(rows)]


def roots(chats: Chats) -> list[str]:
    return [
        row[0] for row in chats.connection.execute("SELECT content FROM messages WHERE parent_no IS NULL ORDER BY 1")
    ]


def test_sub_agent_with_its_own_system_message_begins_a_conversation(chats: Chats) -> None:
    main, sub = Agent(chats, "main", MAIN), Agent(chats, "sub", SUB)
    main.turn()
    session_id = sub.turn()
    assert leaves(chats, session_id) == [sub.history, main.history]
    main.turn()
    sub.turn()
    main.turn()
    assert leaves(chats, session_id) == [main.history, sub.history]
    assert chats.count("messages") == len(main.history) + len(sub.history)


@pytest.mark.parametrize("instructions", (None, MAIN))
def test_sub_agent_with_the_same_system_message_is_known_when_it_resends(
    chats: Chats, instructions: Message | None
) -> None:
    main, sub = Agent(chats, "main", instructions), Agent(chats, "sub", instructions)
    main.turn()
    session_id = sub.turn()
    assert chats.texts(session_id)[-4:] == [message["content"] for message in main.history[-2:] + sub.history[-2:]]
    sub.turn()
    main.turn()
    assert leaves(chats, session_id) == [main.history, sub.history]
    assert chats.count("messages") == 8 + bool(instructions)


def test_sub_agent_of_one_turn_is_known_when_the_other_goes_on_without_it(chats: Chats) -> None:
    main, sub, other = Agent(chats, "main"), Agent(chats, "sub"), Agent(chats, "other")
    main.turn()
    sub.turn()
    other.turn()
    session_id = main.turn()
    assert leaves(chats, session_id) == [main.history, [*sub.history, *other.history]]
    other.turn()
    assert leaves(chats, session_id) == [other.history, main.history, sub.history]
    assert chats.count("messages") == 10


def test_many_agents_take_turns(chats: Chats) -> None:
    agents = [Agent(chats, f"agent {number}", (MAIN, SUB, None)[number % 3]) for number in range(9)]
    for turn in range(5):
        for agent in agents[turn:] + agents[:turn]:
            session_id = agent.turn()
    assert sorted(map(str, leaves(chats, session_id))) == sorted(str(agent.history) for agent in agents)
    assert chats.count("messages") == 9 * 5 * 2 + 2


def test_agents_that_are_asked_the_same_share_the_question(chats: Chats) -> None:
    session_id = chats.store([MAIN, user("q")], said("for main"), session="s")
    chats.store([TITLES, user("q")], said("a title"), session="s")
    assert leaves(chats, session_id) == [[TITLES, user("q"), said("a title")], [MAIN, user("q"), said("for main")]]
    chats.store([MAIN, user("q"), said("for main"), user("r")], said("more"), session="s")
    assert leaves(chats, session_id)[0] == [MAIN, user("q"), said("for main"), user("r"), said("more")]
    assert chats.count("messages") == 7


def test_history_that_is_resent_at_once_is_a_conversation_of_its_own(chats: Chats) -> None:
    main = Agent(chats, "main")
    session_id = main.turn()
    resumed = [user("old"), said("older"), user("and now?")]
    chats.store(resumed, said("so"), session="s")
    assert leaves(chats, session_id) == [[*resumed, said("so")], main.history]


def test_dropped_turns_are_found_in_a_session_of_several_conversations(chats: Chats) -> None:
    main, sub = Agent(chats, "main", MAIN), Agent(chats, "sub", SUB)
    for _ in range(4):
        main.turn()
        session_id = sub.turn()
    window = [MAIN, *main.history[-3:], user("next")]
    chats.store(window, said("yes"), session="s")
    assert leaves(chats, session_id) == [[*main.history, user("next"), said("yes")], sub.history]


# --- lone new turns


def test_lone_turns_that_say_the_same_follow_each_other(chats: Chats) -> None:
    for number in range(4):
        session_id = chats.store([user("go on" if number else "begin")], said(f"part {number}"), session="s")
    assert chats.texts(session_id) == ["begin", "part 0", *(text for n in (1, 2, 3) for text in ("go on", f"part {n}"))]


def test_lone_turn_that_failed_is_asked_again_in_its_place(chats: Chats) -> None:
    chats.store([user("begin")], said("part 0"), session="s")
    chats.store([user("go on")], session="s")
    session_id = chats.store([user("go on")], said("part 1"), session="s")
    assert chats.texts(session_id) == ["begin", "part 0", "go on", "part 1"]


def test_two_lone_turns_that_say_the_same_and_race_share_the_question(chats: Chats) -> None:
    session_id = chats.store([user("begin")], said("part 0"), session="s")
    with_ids = [chats.begin([user("go on")], session="s") for _ in range(2)]
    chats.finish(with_ids[0])
    chats.finish(with_ids[1], said("part 1"))
    assert chats.count("messages") == 4
    assert chats.texts(session_id) == ["begin", "part 0", "go on", "part 1"]


def test_lone_turns_follow_their_own_conversation_beside_others(chats: Chats) -> None:
    sub = Agent(chats, "sub", SUB)
    for number in range(3):
        chats.store([MAIN, user(f"q{number}")], said(f"a{number}"), session="s")
        session_id = sub.turn()
    expected = [MAIN] + [message for n in range(3) for message in (user(f"q{n}"), said(f"a{n}"))]
    assert leaves(chats, session_id) == [sub.history, expected]


def test_lone_turns_without_a_system_message_do_not_follow_a_title(chats: Chats) -> None:
    chats.store([user("q0")], said("a0"), session="s")
    chats.store([TITLES, user("a title for: q0")], said("zero"), session="s")
    session_id = chats.store([user("q1")], said("a1"), session="s")
    assert chats.texts(session_id) == ["q0", "a0", "q1", "a1"]


def test_system_message_with_another_date_does_not_part_lone_turns(chats: Chats) -> None:
    for day in (26, 27, 28):
        session_id = chats.store([system(f"It is 2026-11-{day}."), user(f"on {day}")], said("ok"), session="s")
    assert [text for text in chats.texts(session_id) if "on" in text] == ["on 26", "on 27", "on 28"]


def test_lone_turns_that_are_read_back_and_sent_are_one_conversation(chats: Chats) -> None:
    for number in range(3):
        session_id = chats.store([user(f"q{number}")], said(f"a{number}"), session="s")
    history = [*chats.ready(session_id), user("q3")]
    for turn in (3, 4, 5):
        chats.store(history, said(f"a{turn}"), session="s")
        history += [said(f"a{turn}"), user(f"q{turn + 1}")]
    assert chats.ready(session_id) == history[:-1]
    assert chats.count("messages") == 12
    # Without an id the whole of it is found too.
    assert chats.stitched(history) == session_id


def test_lone_turn_resent_from_the_root_leaves_the_branch_it_was_shown_on(chats: Chats) -> None:
    chats.store([user("q0")], said("a0"), session="s")
    session_id = chats.store([user("q1")], said("a1"), session="s")
    chats.post(session_id, user("by hand"))
    chats.store([user("q1"), said("a1"), user("q2")], said("a2"), session="s")
    assert leaves(chats, session_id) == [
        [user("q1"), said("a1"), user("q2"), said("a2")],
        [user("q1"), said("a1"), user("by hand")],
        [user("q0"), said("a0")],
    ]


def test_request_in_progress_is_finished_where_it_has_moved_to(chats: Chats) -> None:
    main = Agent(chats, "main")
    main.turn()
    sub = [user("s1")]
    chats.store(sub, said("r1"), session="s")
    begun = chats.begin([*sub, said("r1"), user("s2")], session="s")
    chats.finish(chats.begin([*sub, said("r1"), user("other")], session="s"), said("r"))
    session_id = chats.finish(begun, said("r2"))
    assert leaves(chats, session_id)[0] == [*sub, said("r1"), user("s2"), said("r2")]


# --- databases and files of before


def test_replies_of_schema_8_are_found_and_compared_anew(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    from proxy.wire import hash_chain

    history = [user("a"), said("\n\nHi "), user("b"), said("<think>hm</think>ho\n")]
    with monkeypatch.context() as before:
        before.setattr(hash_chain, "canonical", hash_chain.exact)
        session_id = chats.store(history[:1], history[1], session="s")
        chats.store(history[:3], history[3], session="s")
        stitched = chats.store([user("x"), said(" y")], said(" z "))
    chats.store([*history, user("c")], said("d"), session="s")
    assert chats.count("messages") == 9
    assert chats.ready(session_id) == [*history, user("c"), said("d")]
    trimmed = [user("a"), said("Hi"), user("b"), said("ho"), user("c"), said("d"), user("e")]
    chats.store(trimmed, said("f"), session="s")
    assert chats.count("messages") == 11
    assert chats.stitched([user("x"), said(" y"), said(" z "), user("more")]) == stitched


def test_export_brings_the_conversations_along(chats: Chats, tmp_path: Path) -> None:
    from proxy.maintenance import export, imports

    main, sub, lone = Agent(chats, "main"), Agent(chats, "sub"), Agent(chats, "lone")
    for agent in (main, sub, sub, lone):
        session_id = agent.turn()
    lines = [line.encode() for line in export.export(chats.connection, export.Scope(), format_="jsonl")]
    other = Chats(tmp_path / "other.db")
    imports.load(other.connection, lines, progress=lambda _: None)
    main.chats = sub.chats = lone.chats = other
    for agent in (lone, main, sub):
        agent.turn()
    assert leaves(other, session_id) == [sub.history, main.history, lone.history]
    assert other.count("messages") == 14
    other.connection.close()


def test_conversation_begins_with_its_second_message_where_the_first_is_deleted(chats: Chats) -> None:
    from proxy.storage.removal import remove_message

    main, sub = Agent(chats, "main"), Agent(chats, "sub")
    main.turn()
    session_id = sub.turn()
    number = chats.connection.execute("SELECT message_no FROM messages WHERE content = 'sub asks 1'").fetchone()[0]
    with chats.connection.transaction():
        remove_message(chats.connection, number, session_id=session_id)
    sub.turn()
    main.turn()
    assert leaves(chats, session_id) == [main.history, sub.history[1:]]


# --- titles


def title(chats: Chats, session_id: str) -> str:
    session = queries.sessions.get_session(chats.connection, session_id)
    assert session is not None
    return session.title


@pytest.mark.parametrize("instructions", (None, TITLES))
@pytest.mark.parametrize("before", (1, 2))
def test_title_is_of_the_oldest_conversation_that_asks_for_none(
    chats: Chats, before: int, instructions: Message | None
) -> None:
    for number in range(before):
        asked = [user(f"Write a {number}-word title for: fix the build")]
        chats.store([instructions, *asked] if instructions else asked, said("Build"), session="s")
    assert title(chats, chats.named("s") or "").startswith("Write a 0-word title")
    session_id = chats.store([MAIN, user("fix the build")], said("done"), session="s")
    assert title(chats, session_id) == "fix the build"
    chats.store([SUB, user("look for the error")], said("found"), session="s")
    assert title(chats, session_id) == "fix the build"


def test_title_request_that_comes_later_does_not_name_the_session(chats: Chats) -> None:
    chats.store([MAIN, user("fix the build")], said("done"), session="s")
    session_id = chats.store([TITLES, user("fix the build, please")], said("Build"), session="s")
    assert title(chats, session_id) == "fix the build"


def test_refused_request_without_messages_leaves_no_session(chats: Chats) -> None:
    with write_batch(chats.connection) as rows:
        exchange_store.finish(rows, chats.begin([]), Outcome(status="failed", http_status=400))
    assert (chats.count("sessions"), chats.count("exchanges")) == (0, 0)
    session_id = chats.store([user("a")], said("b"), session="s")
    chats.store([], session="s")
    assert (chats.count("sessions"), chats.count("exchanges")) == (1, 2)
    assert chats.texts(session_id) == ["a", "b"]
