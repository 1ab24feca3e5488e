"""Invented, harmless chats of every kind, for screenshots and for tests in a browser."""

import struct
import time
import zlib
from base64 import b64encode
from typing import Any

from proxy.ids import timestamp, uuid7
from proxy.storage import exchange_store, queries
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.storage.sqlite_connection import SqliteConnection
from proxy.storage.usage import add_usage
from proxy.storage.write_batch import write_batch
from proxy.wire import json_text
from proxy.wire.chat_reply import Completion
from proxy.wire.endpoints import endpoint_of
from tests.stored import assistant, choice, user

Message = dict[str, Any]
SYSTEM = {
    "role": "system",
    "content": "You are a friendly travel guide. Answer briefly, and say when you are not sure.",
}
PLAN = """Here is a relaxed day, mostly on foot:

| time | what |
|---|---|
| 9:00 | Coffee at the market hall, then the old harbour |
| 11:00 | The museum of clocks, small and never crowded |
| 14:00 | Lunch by the canal |
| 16:00 | Tower, 240 steps, best light in the afternoon |

**Tip:** the tower closes at 17:30. If it rains, go to the *glass house* instead.

1. Buy the tower ticket in the morning.
2. Bring a jacket: it is windy up there.
"""
CODE = """Use a generator, so that only one line is in memory at a time:

```python
def longest_line(path: str) -> str:
    longest = ""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if len(line) > len(longest):
                longest = line
    return longest.rstrip("\\n")
```

It takes `O(n)` time, and memory for the longest line alone.
"""
UPSTREAM = "http://gpu-2.example:8000"
REASONING = """The user wants a one-day plan. A city with a harbour, a tower and canals.
They walk, so distances matter. Opening hours: the tower closes early.
I should keep it to four stops, and name an alternative for rain."""


class Teller:
    """Tells chats to a database, some minutes apart."""

    def __init__(self, connection: SqliteConnection) -> None:
        self._connection = connection

    def chat(
        self,
        messages: list[Message],
        *replies: Message,
        session_id: str = "",
        user_id: str = "mara",
        model: str = "qwen3-8b",
        tokens: tuple[int, int] = (180, 240),
        times: tuple[int, int] = (120, 2400),
        outcome: Outcome | None = None,
        **body: Any,
    ) -> str:
        """Store a chat with its replies; its session."""
        asked = self.exchange(messages, session_id=session_id, user_id=user_id, model=model, **body)
        usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
        reply = {"id": f"chatcmpl-{uuid7()}", "model": model, "choices": list(replies), "usage": usage}
        whole = Completion.from_body(json_text.dumps(reply).encode())
        done = outcome or Outcome(
            status="completed",
            http_status=200,
            reply=whole,
            time_to_first_token_ms=times[0],
            duration_ms=times[1],
            upstream=UPSTREAM,
            queued_ms=times[0] // 12,
            head_ms=times[0] // 3,
        )
        with write_batch(self._connection) as rows:
            exchange_store.finish(rows, asked, done)
        return asked.session.session_id

    def exchange(
        self, messages: list[Message], *, session_id: str = "", user_id: str = "mara", model: str, **body: Any
    ) -> Exchange:
        """A request."""
        return _asked("/v1/chat/completions", {"model": model, "messages": messages, **body}, session_id, user_id)

    def other(
        self, endpoint: str, request: Message, reply: Message, *, session_id: str = "", user_id: str = "lena"
    ) -> str:
        """Store a request of any endpoint with its reply, both as they were sent; its session."""
        asked = _asked(endpoint, request, session_id, user_id)
        whole = endpoint_of(endpoint).reply(asked.asked)
        whole.take_whole(json_text.dumps(reply).encode())
        done = Outcome(
            status="completed",
            http_status=200,
            reply=whole,
            time_to_first_token_ms=310,
            duration_ms=1900,
            upstream=UPSTREAM,
        )
        with write_batch(self._connection) as rows:
            exchange_store.finish(rows, asked, done)
        return asked.session.session_id

    def begin(self, exchange: Exchange, worker_id: str, *texts: str) -> None:
        """A reply that has streamed so far."""
        with write_batch(self._connection) as rows:
            exchange_store.begin(rows, exchange, worker_id=worker_id)
            for sequence, text in enumerate(texts):
                chunk = {"model": "qwen3-8b", "choices": [{"index": 0, "delta": {"content": text}}]}
                data = f"data: {json_text.dumps(chunk)}\n\n".encode()
                exchange_store.append_fragment(
                    rows, exchange.origin, exchange_id=exchange.exchange_id, sequence=sequence, data=data
                )


def _asked(endpoint: str, request: Message, session_id: str, user_id: str) -> Exchange:
    return Exchange(
        user_id=user_id,
        session=SessionRef(session_id, "header") if session_id else SessionRef(uuid7(), "new"),
        endpoint=endpoint,
        request_id=uuid7(),
        request=request,
    )


def tell_of_days(connection: SqliteConnection, *, days: int = 30) -> None:
    """Usage of the days before, and sessions that are not all of just now."""
    now = time.time()
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    user_no = connection.execute("SELECT user_no FROM users WHERE user_id = 'mara'").fetchone()[0]
    for day in range(1, days):
        chats = (day * 7) % 11 + 3 if day % 7 else 1
        for model, share in (("qwen3-8b", 3), ("coder-14b", 1)):
            told = {"user_no": user_no, "model": model, "endpoint": "/v1/chat/completions", "status": "completed"}
            told |= {"created_at": timestamp(now - day * 86_400), "time_to_first_token_ms": 60 + day * share}
            told |= {"prompt_tokens": 420, "completion_tokens": 180, "cached_tokens": 160, "reasoning_tokens": 40}
            for _ in range(chats * share):
                add_usage(rows, told)
    with connection.transaction():
        queries.usage.count_usage(connection, list(rows.values()))
        listed = connection.execute("SELECT session_no FROM sessions ORDER BY session_no DESC").fetchall()
        for age, (session_no,) in enumerate(listed):
            moment = timestamp(now - 60 * age**5)
            connection.execute(
                "UPDATE sessions SET created_at = ?, updated_at = ? WHERE session_no = ?", (moment, moment, session_no)
            )
            connection.execute("UPDATE messages SET created_at = ? WHERE session_no = ?", (moment, session_no))


def picture() -> str:
    """A small drawing as a data URL: a hill under a sun, large enough to be kept apart."""
    width, height = 240, 150
    rows = b""
    for y in range(height):
        rows += b"\0"
        for x in range(width):
            is_sun = (x - 180) ** 2 + (y - 40) ** 2 < 400
            is_hill = y > 110 - 30 * (1 - ((x - 90) / 120) ** 2)
            shade = (x * 7 + y * 13) % 9
            rows += bytes((250, 200, 60) if is_sun else (70 + shade, 140, 80) if is_hill else (150, 190 + shade, 230))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + b64encode(png).decode()


def tell(connection: SqliteConnection) -> dict[str, str]:
    """Chats of every kind; sessions by a short name."""
    teller = Teller(connection)
    sessions = {"failed": _failed(teller), "cut": _cut(teller), "code": _code(teller)}
    sessions |= {"picture": _picture(teller), "tools": _tools(teller), "long": _long(teller)}
    sessions |= {"responses": _responses(teller), "anthropic": _anthropic(teller), "completion": _completion(teller)}
    sessions["trip"] = _trip(teller)
    return sessions


def _failed(teller: Teller) -> str:
    error = {"message": "This model's maximum context length is 8192 tokens.", "type": "BadRequestError", "code": 400}
    failed = Outcome(status="failed", http_status=400, error=error, duration_ms=9)
    return teller.chat([user("Summarise this book, all of it, in one sentence.")], outcome=failed, user_id="jonas")


def _cut(teller: Teller) -> str:
    reply = Completion.from_body(
        json_text.dumps(
            {"model": "qwen3-8b", "choices": [choice("Once upon a time, in a town", finish_reason=None)]}
        ).encode()
    )
    error = {"message": "The caller left before the reply had ended.", "type": "caller_disconnected"}
    cut = Outcome(
        status="incomplete", http_status=200, reply=reply, error=error, time_to_first_token_ms=90, duration_ms=700
    )
    return teller.chat([user("Tell me a long story about a clockmaker.")], outcome=cut, user_id="jonas")


def _code(teller: Teller) -> str:
    return teller.chat(
        [user("How do I find the longest line of a file that does not fit into memory?")],
        choice(CODE),
        user_id="jonas",
        model="coder-14b",
        tokens=(41, 118),
    )


def _picture(teller: Teller) -> str:
    content = [
        {"type": "text", "text": "What is in this drawing?"},
        {"type": "image_url", "image_url": {"url": picture()}},
    ]
    return teller.chat([user(content)], choice("A green hill under a blue sky, with a yellow sun on the right."))


def _tools(teller: Teller) -> str:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    asked = user("Do I need an umbrella tomorrow?")
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"day":"tomorrow"}'}}
    session = teller.chat([asked], choice(None, tool_calls=[call], finish_reason="tool_calls"), tools=tools)
    told = {"role": "tool", "tool_call_id": "call_1", "content": '{"rain_mm": 4.2, "wind": "fresh"}'}
    turns = [asked, assistant(None, tool_calls=[call]), told]
    reply = choice("Yes: about 4 mm of rain, and it will be windy. A jacket with a hood is better than an umbrella.")
    return teller.chat(turns, reply, session_id=session, tools=tools)


def _responses(teller: Teller) -> str:
    """A Responses chat: thought, a shell call, its output, and an answer with a citation."""
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Count the files."}]}
    thought |= {"encrypted_content": "gAAAAAB0" * 24}
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_ls", "name": "shell"}
    call |= {"arguments": '{"command":["ls","-1","docs"]}', "status": "completed"}
    patch = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_patch", "name": "apply_patch"}
    patch |= {"input": "*** Begin Patch\n*** Update File: docs/index.md\n-old\n+new\n*** End Patch"}
    told = [
        {"type": "function_call_output", "call_id": "call_ls", "output": "index.md\nkeys.md\nusage.md"},
        {"type": "custom_tool_call_output", "call_id": "call_patch", "output": "Done."},
    ]
    asked: list[Message] = [
        {"role": "user", "content": [{"type": "input_text", "text": "How many pages has the manual?"}]}
    ]
    tools = [{"type": "function", "name": "shell", "parameters": {"type": "object"}}]
    request = {"model": "coder-14b", "instructions": "You work in a folder of documents.", "tools": tools}
    searched = {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "manual"},
    }
    first = {"id": "resp_1", "object": "response", "status": "completed", "model": "coder-14b", "created_at": 1}
    first |= {"output": [thought, call, patch, searched], "usage": {"input_tokens": 90, "output_tokens": 40}}
    session = teller.other("/v1/responses", {**request, "input": asked}, first)
    note = {"type": "url_citation", "url": "https://manual.example/", "title": "The manual", "start_index": 0}
    text = {"type": "output_text", "text": "The manual has **three** pages.", "annotations": [note]}
    said = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]}
    second = {**first, "id": "resp_2", "output": [said]}
    turns = [*asked, thought, call, patch, searched, *told]
    return teller.other("/v1/responses", {**request, "input": turns}, second, session_id=session)


def _anthropic(teller: Teller) -> str:
    """A Messages chat: an image, signed thinking, two calls at once, a failed tool, and an answer."""
    source = {"type": "base64", "media_type": "image/png", "data": picture().partition(",")[2]}
    asked: Message = {"role": "user", "content": [{"type": "image", "source": source}]}
    asked["content"].append({"type": "text", "text": "Where could this hill be, and how warm is it there?"})
    said: Message = {
        "role": "assistant",
        "content": [
            {
                "type": "thinking",
                "thinking": "A green hill. I can look for places like it.",
                "signature": "c2lnbmVk" * 8,
            },
            {"type": "redacted_thinking", "data": "cmVkYWN0ZWQ="},
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "toolu_1", "name": "find_place", "input": {"looks_like": "green hill"}},
            {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {"of": ["today", "tomorrow"]}},
        ],
    }
    results: Message = {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Many places."}]},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no such town", "is_error": True},
        ],
    }
    request: Message = {"model": "claude-like", "max_tokens": 800, "system": [{"type": "text", "text": "Be brief."}]}
    request["tools"] = [{"name": "find_place", "input_schema": {"type": "object"}}]
    usage = {"input_tokens": 300, "cache_read_input_tokens": 120, "output_tokens": 60}
    reply = {
        "id": "msg_1",
        "type": "message",
        **said,
        "model": "claude-like",
        "stop_reason": "tool_use",
        "usage": usage,
    }
    session = teller.other("/v1/messages", {**request, "messages": [asked]}, reply)
    end = {
        "content": [{"type": "text", "text": "I cannot tell: there are many such hills."}],
        "stop_reason": "end_turn",
    }
    turns = [asked, said, results]
    return teller.other("/v1/messages", {**request, "messages": turns}, {**reply, **end}, session_id=session)


def _completion(teller: Teller) -> str:
    choices = [{"index": 0, "text": " upon a time.", "finish_reason": "length"}]
    reply = {
        "id": "cmpl-1",
        "model": "qwen3-8b",
        "choices": choices,
        "usage": {"prompt_tokens": 1, "completion_tokens": 4},
    }
    return teller.other("/v1/completions", {"model": "qwen3-8b", "prompt": "Once", "max_tokens": 4}, reply)


def _long(teller: Teller) -> str:
    turns: list[Message] = []
    session = ""
    for number in range(1, 26):
        turns.append(user(f"Chapter {number}: what happens next?"))
        text = f"In chapter {number} the clockmaker finds another wheel, of brass, with {number} teeth."
        session = teller.chat(turns, choice(text), session_id=session, tokens=(20 * number, 24))
        turns.append(assistant(text))
    return session


def _trip(teller: Teller) -> str:
    first = user("I have one day in a town by the sea. What should I see?")
    session = teller.chat([SYSTEM, first], choice("Start at the harbour, then the museum of clocks."), temperature=0.7)
    teller.chat([SYSTEM, first], choice(PLAN, reasoning=REASONING), session_id=session, temperature=0.7)
    turns = [SYSTEM, first, assistant(PLAN, reasoning=REASONING), user("And if it rains?")]
    return teller.chat(
        turns,
        choice("Then the glass house: a palm garden under a roof, open until eight. The café inside is good, too."),
        session_id=session,
    )


def tell_growing(connection: SqliteConnection, worker_id: str) -> str:
    """A reply that a living worker is just writing; its session."""
    teller = Teller(connection)
    asked = teller.exchange([user("Explain how tides work, for a child.")], model="qwen3-8b")
    teller.begin(
        asked,
        worker_id,
        "The Moon pulls at the sea, ",
        "a little like a magnet. ",
        "Where the pull is strongest the water",
    )
    return asked.session.session_id
