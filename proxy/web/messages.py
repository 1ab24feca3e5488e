"""What the page shows of one message: its text in passages, what else it carries, and how it stands among others. Pure.

Everything here came from a model or a caller and is handed on as plain text; the templates escape it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from proxy.wire import json_text

JSON = dict[str, Any]
Pieces = list[tuple[str, bool]]  # text, and whether it is a hit of the search

CHARACTERS = 20_000  # of a message, or of one of its parts; the rest has a page of its own
EXTRA_CHARACTERS = 200_000  # of a message's other keys; above they are not looked into
_FOLD_CHARACTERS = 2000
_FOLD_LINES = 30
_HITS_MAX = 200
RICH_CHARACTERS = 20_000
_INDENTED_LEVELS = 24

_KINDS = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_HEADINGS = {"user": "User", "assistant": "Assistant", "system": "System message", "developer": "Developer message"}
_REASONING = ("reasoning", "reasoning_content")
_SHOWN_KEYS = frozenset({"content", "tool_calls", "function_call", "refusal", *_REASONING})
_BLOB = re.compile(r"blob:sha256:([0-9a-f]{64})")
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp|avif);base64,[A-Za-z0-9+/=]{1,4096}")
_URL_SHOWN = 300
# Some sign of Markdown: of plain prose it makes nothing else.
_MARKDOWN = re.compile(r"[*_`#|\[~>]|^\s*(?:[-+]|\d+[.)])\s|\n---", re.MULTILINE)


def shown_message(row: JSON, *, session_id: str, query: str | None = None) -> JSON:
    """A stored message, of which `row` has at most `CHARACTERS` of its text."""
    extra = _object(row["extra"])
    content = extra.get("content") if row["content_form"] == "json" else None
    passages = [text for text in (row["content"], _text(extra.get("refusal"))) if text]
    shown = _shown(row["role"], passages, extra, query=query)
    attachments = list(_attachments(content))
    if row["is_extra_left_out"]:
        attachments.append("Other parts of this message are too large to be shown here.")
    return shown | {
        "message_id": row["message_id"],
        "exchange_id": row["exchange_id"],
        "model": row["model"],
        "tokens": row["tokens"],
        "created_at": row["created_at"],
        "status": row["status"],
        "status_words": why(_object(row["error"])) if row["status"] != "completed" else "",
        "omitted": max(0, row["length"] - CHARACTERS),
        "pictures": list(_pictures(content, session_id=session_id, message_id=row["message_id"])),
        "attachments": attachments,
        "is_growing": False,
        "is_rich": _is_rich(row, shown, query),
    }


def _is_rich(row: JSON, shown: JSON, query: str | None) -> bool:
    """Whether its Markdown is worth asking for: where there is nothing of it, or a search marks its hits, it stays."""
    is_one_text = row["role"] in ("user", "assistant") and len(shown["passages"]) == 1 and not query
    return is_one_text and row["length"] <= RICH_CHARACTERS and _MARKDOWN.search(row["content"]) is not None


def growing_message(message: JSON, *, message_id: str, model: str | None, created_at: str) -> JSON:
    """A reply that is still coming, as far as it is on disk."""
    content = message.get("content")
    texts = [text[-CHARACTERS:] for text in (_text(content), _text(message.get("refusal"))) if text]
    shown = _shown("assistant", texts, message, query=None, folds=False)
    return shown | {
        "message_id": message_id,
        "exchange_id": None,
        "model": model,
        "tokens": 0,
        "created_at": created_at,
        "status": "in_progress",
        "status_words": "",
        "omitted": 0,
        "pictures": [],
        "attachments": [],
        "is_growing": True,
        "is_rich": False,
        "forks": None,
    }


def _shown(role: str, texts: list[str], others: JSON, *, query: str | None, folds: bool = True) -> JSON:
    kind = _KINDS.get(role, "tool")
    passages = [_passage(text, query, folds=folds) for text in texts]
    reasoning = next((text for key in _REASONING if (text := _text(others.get(key)))), "")
    rest = {key: value for key, value in others.items() if key not in _SHOWN_KEYS}
    return {
        "kind": kind,
        "heading": _HEADINGS.get(role) or f"{'Tool' if role == 'tool' else role[:40]} result",
        "summary": _summary(role, texts),
        "is_folded": kind in ("system", "tool"),
        "passages": passages,
        "has_hit": any(passage["has_hit"] for passage in passages),
        "reasoning": _passage(reasoning, query, folds=folds) if reasoning else None,
        "calls": list(_calls(others, query)),
        "others": pretty(rest, most=CHARACTERS) if rest else "",
    }


def _summary(role: str, texts: list[str]) -> str:
    words = " ".join((texts[0] if texts else "")[:200].split())
    return words[:100] + ("…" if len(words) > 100 else "") if words else f"Empty {role[:40]} message"


def _passage(text: str, query: str | None, *, folds: bool) -> JSON:
    """A text, folded after its beginning where it is long."""
    cut = len(text)
    if folds and (len(text) > _FOLD_CHARACTERS * 1.2 or text.count("\n") > _FOLD_LINES * 1.2):
        cut = _cut(text)
    head, rest = marked(text[:cut], query), marked(text[cut:].lstrip("\n"), query)
    return {
        "head": head,
        "rest": rest,
        "rest_length": len(text) - cut,
        "length": len(text),
        "has_hit": any(is_hit for _, is_hit in head + rest),
    }


def _cut(text: str) -> int:
    """Where a long text is folded: at a line's end, else at a word's."""
    lines = re.finditer(r"\n", text)
    end = next((line.start() for number, line in enumerate(lines, 1) if number == _FOLD_LINES), len(text))
    end = min(end, _FOLD_CHARACTERS)
    for separator in ("\n", " "):
        at = text.rfind(separator, end // 2, end)
        if at > 0:
            return at
    return end


def marked(text: str, query: str | None) -> Pieces:
    """A text in pieces: hits of the search and what is between them."""
    if not text:
        return []
    if not query:
        return [(text, False)]
    pieces: Pieces = []
    position = 0
    for count, match in enumerate(re.finditer(re.escape(query), text, re.IGNORECASE)):
        if count == _HITS_MAX:
            break
        pieces += [(text[position : match.start()], False), (match[0], True)]
        position = match.end()
    return [piece for piece in [*pieces, (text[position:], False)] if piece[0]]


def _calls(others: JSON, query: str | None) -> Iterator[JSON]:
    calls = others.get("tool_calls")
    listed = calls if isinstance(calls, list) else []
    single = others.get("function_call")
    for call in [*listed[:100], *([{"function": single}] if isinstance(single, dict) else [])]:
        kind = call.get("type") if isinstance(call, dict) else None
        function = call.get(kind if kind == "custom" else "function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            yield {"name": "?", "arguments": marked(pretty(call, most=CHARACTERS), query), "has_hit": False}
            continue
        given = function.get("arguments", function.get("input"))
        arguments = marked(_readable(given)[:CHARACTERS], query)
        has_hit = any(is_hit for _, is_hit in arguments)
        yield {"name": _text(function.get("name"))[:200] or "?", "arguments": arguments, "has_hit": has_hit}


def _readable(arguments: Any) -> str:
    """A call's arguments, indented where they are JSON."""
    if not isinstance(arguments, str):
        return pretty(arguments, most=CHARACTERS)
    if len(arguments) > CHARACTERS:
        return arguments
    try:
        return pretty(json_text.loads(arguments), most=CHARACTERS)
    except ValueError:
        return arguments


def _parts(content: Any) -> Iterator[JSON]:
    for part in content[:200] if isinstance(content, list) else ():
        if isinstance(part, dict) and not isinstance(part.get("text"), str):
            yield part


def _url_of(part: JSON) -> str:
    image = part.get("image_url")
    given = image.get("url") if isinstance(image, dict) else image
    return given if isinstance(given, str) else ""


def _pictures(content: Any, *, session_id: str, message_id: str) -> Iterator[str]:
    """Addresses of a message's images: ours, or in the page itself; nobody else's is ever asked for."""
    for part in _parts(content):
        url = _url_of(part)
        if blob := _BLOB.fullmatch(url):
            yield f"/ui/s/{session_id}/m/{message_id}/blob/{blob[1]}"
        elif _PICTURE.fullmatch(url):
            yield url


def _attachments(content: Any) -> Iterator[str]:
    for part in _parts(content):
        url = _url_of(part)
        if not url:
            yield f"Attachment: {_text(part.get('type'))[:100] or 'of an unknown kind'}"
        elif not (_BLOB.fullmatch(url) or _PICTURE.fullmatch(url)):
            yield f"Image, not loaded from elsewhere: {url[:_URL_SHOWN]}"


def why(error: Mapping[str, Any]) -> str:
    """Why a reply is not whole, in words."""
    kind, message = error.get("type"), error.get("message")
    known = {"caller_disconnected": "the caller left", "interrupted": "the proxy was stopped"}
    if isinstance(kind, str) and kind in known:
        return known[kind]
    return message[:500] if isinstance(message, str) and message else "upstream ended it early"


def pretty(value: Any, *, most: int) -> str:
    """Indented JSON, cut where it is long. What is nested deeply is not indented: it would grow with each level."""
    text = json.dumps(value, indent=2, ensure_ascii=False) if _is_shallow(value) else json_text.dumps(value)
    return text if len(text) <= most else text[:most] + f"\n… {len(text) - most} more characters"


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(_INDENTED_LEVELS):
        level = [item for each in level for item in _items(each)]
    return not level


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _object(text: str | None) -> JSON:
    value = json_text.stored(text)
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
