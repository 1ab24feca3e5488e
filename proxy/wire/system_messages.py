"""Compares system messages (equal except for dates and counters, or different), and detects title requests. Pure."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from proxy.wire.hash_chain import is_chained
from proxy.wire.message import readable

# Longer texts are compared by their beginning only: other requests wait meanwhile.
_COMPARED_LENGTH = 32_768
# Texts that share at least this fraction of words are versions of the same text.
_ALIKE = 0.8
_CHANGING = "#"
# Numbers with attached letters (dates, versions, identifiers); single characters of scripts without spaces; words.
_WORD = re.compile(r"[A-Za-z]*\d[0-9A-Za-z]*|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_]+")
_CALENDAR = re.compile(
    r"(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?|"
    r"jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?|[ap]m|utc|gmt|[一二三四五六七八九十日月火水木金土]"
)
_INSTRUCTIONS_LENGTH = 300
_TITLE = re.compile(r"\btitles?\b|标题|標題|タイトル", re.IGNORECASE)
_ASK = re.compile(
    r"\b(?:generat\w*|writ\w*|creat\w*|mak\w*|provid\w*|suggest\w*|giv\w*|extract\w*|output\w*|produc\w*|compos\w*|"
    r"summari\w*|come up|respond\w*|return\w*)\b|生成|作成",
    re.IGNORECASE,
)


def leading(messages: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The system messages before the first other message."""
    found: list[Mapping[str, Any]] = []
    for message in messages:
        if is_chained(message):
            break
        found.append(message)
    return found


def are_alike(one: str, other: str) -> bool:
    """Whether two system messages are versions of one: most words match, ignoring dates, counters and identifiers."""
    if one == other:
        return True
    mine, theirs = _words(one), _words(other)
    common = (mine & theirs).total()
    return 2 * common >= _ALIKE * (mine.total() + theirs.total())


def is_title_request(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a chat UI asks for a conversation title, judged by the beginning of its instructions."""
    asked = next((message for message in messages if message.get("role") == "user"), None)
    instructions = [*leading(messages), *([asked] if asked else ())]
    return any(_asks_for_title(readable(message.get("content"))) for message in instructions)


def _asks_for_title(text: str) -> bool:
    head = text[:_INSTRUCTIONS_LENGTH]
    return _TITLE.search(head) is not None and _ASK.search(head) is not None


def _words(text: str) -> Counter[str]:
    return Counter(map(_without_date, _WORD.findall(text[:_COMPARED_LENGTH].lower())))


def _without_date(word: str) -> str:
    is_changing = _CALENDAR.fullmatch(word) or any(character.isdigit() for character in word)
    return _CHANGING if is_changing else word
