"""Which system messages are versions of one, and which requests ask for a title."""

import pytest

from proxy.wire.system_messages import are_alike, is_title_request
from tests.chats import said, system, user

PROMPT = "You are a careful assistant. Answer briefly, cite the files you read, and never run a command unasked. "


@pytest.mark.parametrize(
    ("one", "other"),
    (
        ("it is 1 o'clock", "it is 2 o'clock"),
        ("Today is Monday, 2026-11-23.", "Today is Friday, 2026-11-27."),
        (PROMPT + "Now: 2026-11-27T02:11:09Z", PROMPT + "Now: 2027-01-02T23:59:00Z"),
        (PROMPT + "Date: Nov 27 2026", PROMPT + "Date: Jan 3 2027"),
        ("request 7f3a09bc of session 12", "request 0d11aa9e of session 13"),
        (PROMPT, PROMPT + "The user likes tea."),
        ("今天是2026年11月27日，星期五。你是一个助手。", "今天是2026年12月1日，星期二。你是一个助手。"),
        ("", ""),
    ),
)
def test_versions_of_one_system_message(one: str, other: str) -> None:
    assert are_alike(one, other)
    assert are_alike(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    (
        ("You are the main agent", "You are a sub-agent"),
        ("You are the main agent", "You make titles"),
        ("You are agent A", "You are agent B"),
        (PROMPT, "You are a title generator. You output only a thread title, nothing else."),
        ("You are Claude Code.\n" + PROMPT, "You are Claude Code.\nYou search files for the main agent. Report paths."),
        ("你是一个翻译助手。", "请总结下面的对话内容。"),
        ("x", ""),
    ),
)
def test_plainly_other_system_messages(one: str, other: str) -> None:
    assert not are_alike(one, other)
    assert not are_alike(other, one)


def test_long_system_messages_are_compared_by_their_beginning() -> None:
    assert are_alike("a b c " * 20_000, "a b c " * 20_000 + "d e f " * 1_000_000)


@pytest.mark.parametrize(
    "messages",
    (
        [system("You make titles"), user("Write a 5-word title for: main task")],
        [system("You are a title generator. You output ONLY a thread title."), user("fix the build")],
        [user("### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.")],
        [user([{"type": "text", "text": "Provide a concise, 5-word-or-less title for the conversation"}])],
        [system("You are Claude Code."), system("Generate a concise, sentence-case title (3-7 words)."), user("fix")],
        [user("请为以下对话生成标题")],
    ),
)
def test_requests_for_a_title(messages: list[dict[str, object]]) -> None:
    assert is_title_request(messages)


@pytest.mark.parametrize(
    "messages",
    (
        [user("main task")],
        [user("what is the title of that film?")],
        [system(PROMPT * 5 + "Write a title when asked."), user("hello")],
        [user("hi"), said("Here is a title you can write"), user("thanks")],
        [],
    ),
)
def test_other_requests(messages: list[dict[str, object]]) -> None:
    assert not is_title_request(messages)
