"""Prepares one message for display: text passages, attachments, and alternatives. Pure.

All values come from a model or a caller and stay plain text; the templates escape them.
"""

import re
from collections.abc import Mapping
from typing import Any

from proxy.web import as_sent
from proxy.web.parts import CHARACTERS, calls_of, kept_of, marked, notes_of, pictures_of, pretty, text_of
from proxy.wire import json_text
from proxy.wire.message import to_openai

JSON = dict[str, Any]

EXTRA_CHARACTERS = 200_000  # size limit for parsing a message's other keys
# Longer texts are folded, so that the conversation stays visible; a click unfolds them.
_FOLD_CHARACTERS = 2000
_FOLD_LINES = 30
RICH_CHARACTERS = 20_000

_KINDS = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_HEADINGS = {"user": "User", "assistant": "Assistant", "system": "System message", "developer": "Developer message"}
_REASONING = ("reasoning", "reasoning_content")
_SHOWN_KEYS = frozenset({"content", "tool_calls", "function_call", "refusal", *_REASONING})
_SHOWN_NAMES = frozenset({"name", "tool_call_id"})
_COLUMNS = ("role", "content", "content_form", "extra")
# Signs of Markdown; without any, the text would look the same.
_MARKDOWN = re.compile(r"[*_`#|\[~>]|^[ \t]*(?:[-+]|\d+[.)])\s|\n---", re.MULTILINE)


def shown_message(row: JSON, *, session_id: str, query: str | None = None) -> JSON:
    """A stored message for display; `row` contains at most `CHARACTERS` of its text."""
    extra = _object(row["extra"])
    content = extra.get("content") if row["content_form"] == "json" else None
    passages = [text for text in (row["content"], text_of(extra.get("refusal"))) if text]
    shown = _shown(row["role"], passages, extra, query=query)
    notes = list(notes_of(content))
    if row["is_extra_left_out"]:
        notes.append("Other parts of this message are too large to show here.")
    return (
        shown
        | _own_form(row)
        | {
            "message_id": row["message_id"],
            "exchange_id": row["exchange_id"],
            "model": row["model"],
            "tokens": row["tokens"],
            "created_at": row["created_at"],
            "status": row["status"],
            "status_words": why(_object(row["error"])) if row["status"] != "completed" else "",
            "omitted": max(0, row["length"] - CHARACTERS),
            "pictures": list(pictures_of(content, session_id=session_id, message_id=row["message_id"])),
            "notes": notes,
            "kept": list(kept_of(content)),
            "tool": text_of(extra.get("name")) or text_of(extra.get("tool_call_id")),
            "call_id": text_of(extra.get("tool_call_id")),
            "is_growing": False,
            "is_rich": _is_rich(row, shown, query),
        }
    )


def _own_form(row: JSON) -> JSON:
    """The message in its Responses or Anthropic form, if it has one and is not too long."""
    wire = _object(row["wire"])
    is_cut = row["length"] > CHARACTERS or row["is_extra_left_out"]
    message = {} if is_cut or not wire else to_openai(**{name: row[name] for name in _COLUMNS}, blobs={})
    form = as_sent.in_own_form(message, wire) if message else None
    if form is None:
        return {"form": None, "is_error": False}
    name, value = form
    return {"form": {"name": name, "text": pretty(value, most=CHARACTERS)}, "is_error": as_sent.is_error(value)}


def _is_rich(row: JSON, shown: JSON, query: str | None) -> bool:
    """Whether to render its Markdown: not if it has none, or if search hits are marked in the plain text."""
    is_one_text = row["role"] in ("user", "assistant") and len(shown["passages"]) == 1 and not query
    return is_one_text and row["length"] <= RICH_CHARACTERS and _MARKDOWN.search(row["content"]) is not None


def growing_message(message: JSON, *, message_id: str, model: str | None, created_at: str) -> JSON:
    """A reply in progress, as far as it is on disk."""
    content = message.get("content")
    texts = [text[-CHARACTERS:] for text in (text_of(content), text_of(message.get("refusal"))) if text]
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
        "notes": [],
        "kept": [],
        "tool": "",
        "call_id": "",
        "form": None,
        "is_error": False,
        "is_growing": True,
        "is_rich": False,
        "forks": None,
    }


def _shown(role: str, texts: list[str], others: JSON, *, query: str | None, folds: bool = True) -> JSON:
    kind = _KINDS.get(role, "tool")
    passages = [_passage(text, query, folds=folds) for text in texts]
    reasoning = next((text for key in _REASONING if (text := text_of(others.get(key)))), "")
    shown = _SHOWN_KEYS | {key for key in _SHOWN_NAMES if isinstance(others.get(key), str)}
    rest = {key: value for key, value in others.items() if key not in shown}
    return {
        "kind": kind,
        "heading": _HEADINGS.get(role) or f"{'Tool' if role == 'tool' else role[:40]} result",
        "summary": _summary(role, texts),
        "is_folded": kind in ("system", "tool"),
        "passages": passages,
        "has_hit": any(passage["has_hit"] for passage in passages),
        "reasoning": _passage(reasoning, query, folds=folds) if reasoning else None,
        "calls": list(calls_of(others, query)),
        "others": pretty(rest, most=CHARACTERS) if rest else "",
    }


def _summary(role: str, texts: list[str]) -> str:
    words = " ".join((texts[0] if texts else "")[:200].split())
    return words[:100] + ("…" if len(words) > 100 else "") if words else f"Empty {role[:40]} message"


def _passage(text: str, query: str | None, *, folds: bool) -> JSON:
    """A passage of text; a long one is folded after its beginning."""
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
    """Where to fold a long text: at a line end, else between words."""
    lines = re.finditer(r"\n", text)
    end = next((line.start() for number, line in enumerate(lines, 1) if number == _FOLD_LINES), len(text))
    end = min(end, _FOLD_CHARACTERS)
    for separator in ("\n", " "):
        at = text.rfind(separator, end // 2, end)
        if at > 0:
            return at
    return end


def why(error: Mapping[str, Any]) -> str:
    """Why a reply is incomplete, in words."""
    kind, message = error.get("type"), error.get("message")
    known = {"caller_disconnected": "the caller left", "interrupted": "the proxy was stopped"}
    if isinstance(kind, str) and kind in known:
        return known[kind]
    return message[:500] if isinstance(message, str) and message else "upstream ended it early"


def _object(text: str | None) -> JSON:
    value = json_text.stored(text)
    return value if isinstance(value, dict) else {}
