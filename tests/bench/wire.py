"""The bytes that the benchmark's upstream and its load client agree on, as vLLM 0.32 and its clients send them."""

import json
import re

MODEL = "Qwen/Qwen3-8B"
FIRST = b"Once"  # in the first token of every stream and nowhere else
LAST = b"the end."  # in the last
REPLY = "The capital of France is Paris. It lies on the Seine, and some two million people live there."
TERMINATOR = b"0\r\n\r\n"
_WORDS = (
    " upon",
    " a",
    " time",
    ",",
    " a",
    " small",
    " café",
    " stood",
    " by",
    " a",
    " river",
    " with",
    " 三",
    " old",
    "\n",
)
_ID = "0123456789abcdef"  # replaced by each reply's own id, which is as long
_CREATED = 1795312427
_USAGE = {
    "prompt_tokens": 61,
    "total_tokens": 261,
    "completion_tokens": 200,
    "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": 0, "multimodal_tokens": None},
    "completion_tokens_details": None,
}

Split = tuple[bytes, ...]  # what comes before the reply's id, and after it
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def token_texts(tokens: int) -> list[str]:
    """The texts of a stream of `tokens` tokens (at least two): the same for the upstream and for the client."""
    middle = [_WORDS[i % len(_WORDS)] for i in range(tokens - 2)]
    return [FIRST.decode(), *middle, " " + LAST.decode()]


def stream_events(tokens: int) -> list[Split]:
    """The events of one stream up to its finish, each framed as an HTTP chunk: the role, the tokens, the finish."""
    role = _event(
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]
    )
    deltas = [_event([_choice({"content": text}, None)]) for text in token_texts(tokens)]
    return [role, *deltas, _event([{**_choice({"content": ""}, "stop"), "stop_reason": None}])]


def usage_event() -> Split:
    """The extra chunk of a request that asks for `include_usage`."""
    return _event([], usage=_USAGE)


def done() -> bytes:
    """`[DONE]` and the terminator, which vLLM may send in one segment."""
    return b"e\r\ndata: [DONE]\n\n\r\n" + TERMINATOR


def stream_head() -> bytes:
    return _head("text/event-stream; charset=utf-8", "transfer-encoding: chunked")


def whole_reply(content_type: str = "application/json") -> Split:
    """A `chat.completion` of some 700 bytes with its head, split at the id."""
    message = {"role": "assistant", "content": REPLY, "refusal": None, "annotations": None, "audio": None}
    message |= {"function_call": None, "reasoning": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    reply = {"id": f"chatcmpl-{_ID}", "object": "chat.completion", "created": _CREATED, "model": MODEL}
    reply |= {"choices": [{**choice, "token_ids": None}], "service_tier": None, "system_fingerprint": None}
    reply |= {"usage": _USAGE, "prompt_logprobs": None, "prompt_token_ids": None, "kv_transfer_params": None}
    body = _json(reply)
    return _split(_head(content_type, f"content-length: {len(body)}") + body)


def plain_reply(status: str, value: object) -> bytes:
    """A small JSON reply to the other routes that relays ask for."""
    body = _json(value)
    return _head("application/json", f"content-length: {len(body)}", status=status) + body


def chat_request(*, host: str, stream: bool, model: str = MODEL) -> tuple[bytes, bytes]:
    """A chat completion as the OpenAI client sends it, split where a number of eight digits tells requests apart."""
    system = "You are a helpful assistant. Answer briefly, and say so when you do not know."
    asked = "Question ######## of today: what is the capital of France, and how many people live there?"
    messages = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
    body = _json({"messages": messages, "model": model, "max_tokens": 400, "temperature": 0.7, "stream": stream})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\n"
        "Content-Type: application/json\r\nUser-Agent: OpenAI/Python 3.0.0\r\nX-Stainless-Lang: python\r\n"
        "X-Stainless-Package-Version: 3.0.0\r\nX-Stainless-Retry-Count: 0\r\nX-Stainless-Async: async:asyncio\r\n"
        f"Authorization: Bearer sk-bench\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    before, _, after = (head.encode() + body).partition(b"########")
    return before, after


def content_length(head: bytes) -> int | None:
    """The length that a head (or what starts with one) names."""
    found = _CONTENT_LENGTH.search(head)
    return int(found[1]) if found else None


def body_of(raw: bytes) -> bytes:
    """The body of a complete response with the chunk framing taken off. Raises ValueError where it is not complete."""
    head, blank, body = raw.partition(b"\r\n\r\n")
    if not blank:
        raise ValueError("no response head")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"{head[:80].decode('latin-1').splitlines()[0]} {body[:200].decode('latin-1')}")
    length = content_length(head)
    if length is None:
        return _without_chunks(body)
    if len(body) != length:
        raise ValueError(f"{len(body)} of {length} bytes")
    return body


def check_stream(raw: bytes, *, tokens: int, sends_done: bool = True) -> None:
    """Raise ValueError unless the response holds every token in order, a finish and, from who sends it, `[DONE]`."""
    events = [line[6:] for line in body_of(raw).split(b"\n") if line.startswith(b"data: ")]
    if not sends_done:
        events.append(b"[DONE]")
    if not events or events[-1].strip() != b"[DONE]":
        raise ValueError(f"no [DONE] after {len(events)} events")
    choices = [choice for event in events[:-1] for choice in json.loads(event).get("choices", ())]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    if text != "".join(token_texts(tokens)):
        raise ValueError(f"{len(text)} characters that differ from those sent, in {len(events)} events")
    if not any(choice.get("finish_reason") for choice in choices):
        raise ValueError("no finish_reason")


def check_whole(raw: bytes) -> None:
    """Raise ValueError unless the response is the whole reply."""
    reply = json.loads(body_of(raw))
    if reply["choices"][0]["finish_reason"] != "stop" or reply["usage"]["completion_tokens"] != 200:
        raise ValueError("a reply that lacks its finish or its usage")


def _event(choices: list[dict[str, object]], **more: object) -> Split:
    chunk = {"id": f"chatcmpl-{_ID}", "object": "chat.completion.chunk", "created": _CREATED, "model": MODEL}
    data = b"data: " + _json({**chunk, "choices": choices, **more}) + b"\n\n"
    return _split(b"%x\r\n%b\r\n" % (len(data), data))


def _choice(delta: dict[str, object], finish_reason: str | None) -> dict[str, object]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason, "token_ids": None}


def split_at_id(data: bytes) -> tuple[bytes, ...]:
    """The data between the places where a reply's id stands; joined by an id, it is that reply's."""
    return tuple(data.split(_ID.encode()))


def _split(data: bytes) -> Split:
    before, _, after = data.partition(_ID.encode())
    return before, after


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _head(content_type: str, *more: str, status: str = "200 OK") -> bytes:
    lines = [
        "HTTP/1.1 " + status,
        "date: Sun, 22 Nov 2026 01:53:46 GMT",
        "server: uvicorn",
        f"content-type: {content_type}",
    ]
    return "\r\n".join([*lines, *more, "", ""]).encode()


def _without_chunks(body: bytes) -> bytes:
    parts: list[bytes] = []
    position = 0
    while True:
        line_end = body.find(b"\r\n", position)
        if line_end < 0:
            raise ValueError("the response ends before its terminator")
        size = int(body[position:line_end].split(b";")[0], 16)
        if size == 0 and body[position:] == TERMINATOR:
            return b"".join(parts)
        if size == 0:
            raise ValueError("the response ends within its terminator, or goes on behind it")
        position = line_end + 2 + size + 2
        parts.append(body[line_end + 2 : position - 2])
