"""The demo's replies in the wire format of vLLM 0.32: whole completions, and streams of chunks."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from itertools import zip_longest
from typing import Any

from proxy.demo.call import MAX_MODEL_LEN, MODEL, Call
from proxy.demo.echo import Reply

# vLLM sends a `system_fingerprint` of its version and configuration with each reply and chunk.
FINGERPRINT = "vllm-0.32.0-demo"
DONE = b"data: [DONE]\n\n"

Json = dict[str, Any]


def dumps(body: object) -> bytes:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace")  # JSON can contain a lone surrogate, UTF-8 cannot


def models(*, created: int) -> Json:
    grants = dict.fromkeys(("create_engine", "sampling", "logprobs", "search_indices", "view", "fine_tuning"), False)
    grants |= dict.fromkeys(("sampling", "logprobs", "view"), True)
    permission = {"id": f"modelperm-{secrets.token_hex(8)}", "object": "model_permission", "created": created}
    permission |= {f"allow_{grant}": given for grant, given in grants.items()}
    permission |= {"organization": "*", "group": None, "is_blocking": False}
    model = {"id": MODEL, "object": "model", "created": created, "owned_by": "vllm", "root": MODEL, "parent": None}
    model |= {"max_model_len": MAX_MODEL_LEN, "permission": [permission]}
    return {"object": "list", "data": [model]}


def chat_completion(call: Call, replies: list[Reply]) -> Json:
    choices = [
        {"index": index, "message": _message(reply), "logprobs": _logprobs(call, reply.tokens, tool=reply.tool)}
        | _ending(reply)
        | {"routed_experts": None}
        for index, reply in enumerate(replies)
    ]
    prompt = dict.fromkeys(("prompt_logprobs", "prompt_token_ids", "prompt_text"))
    return _head(call, "chat.completion") | {"choices": choices} | _whole_tail(call, replies, prompt)


def text_completion(call: Call, replies: list[Reply]) -> Json:
    prompt = dict.fromkeys(("prompt_logprobs", "prompt_token_ids", "routed_experts"))
    choices = [
        {"index": index, "text": reply.text, "logprobs": None} | _ending(reply) | prompt
        for index, reply in enumerate(replies)
    ]
    return _head(call, "text_completion") | {"choices": choices} | _whole_tail(call, replies, {})


def chat_events(call: Call, replies: list[Reply], *, pause_seconds: float) -> AsyncIterator[bytes]:
    choices = [_chat_choices(call, index, reply) for index, reply in enumerate(replies)]
    return _events(call, _head(call, "chat.completion.chunk"), choices, total=_total(replies), pause=pause_seconds)


def text_events(call: Call, replies: list[Reply], *, pause_seconds: float) -> AsyncIterator[bytes]:
    choices = [_text_choices(index, reply) for index, reply in enumerate(replies)]
    return _events(call, _head(call, "text_completion"), choices, total=_total(replies), pause=pause_seconds)


async def _events(
    call: Call, head: Json, choices: list[Iterator[Json]], *, total: int, pause: float
) -> AsyncIterator[bytes]:
    """The stream's events; the choices alternate token by token, as in one batch of the engine."""
    options = call.body.get("stream_options") or {}
    spoken = 0
    for turn in zip_longest(*choices):
        for choice in filter(None, turn):
            role = "role" in choice.get("delta", {})
            spoken = min(spoken + (not role), total)
            yield _event(head | {"choices": [choice]} | _chunk_tail(call, choice, spoken=spoken, options=options))
        await asyncio.sleep(pause)
    if options.get("include_usage"):
        yield _event(head | {"choices": [], "usage": _usage(call, total), "system_fingerprint": FINGERPRINT})
    yield DONE


def _chunk_tail(call: Call, choice: Json, *, spoken: int, options: Json) -> Json:
    tail: Json = {}
    if "role" in choice.get("delta", {}):
        tail |= {"prompt_token_ids": None, "prompt_text": None}
    if options.get("include_usage") and options.get("continuous_usage_stats"):
        tail["usage"] = _usage(call, spoken) | {"completion_tokens_details": None}
    if choice["finish_reason"] and not options.get("include_usage"):
        tail["system_fingerprint"] = FINGERPRINT
    return tail


def _chat_choices(call: Call, index: int, reply: Reply) -> Iterator[Json]:
    """The chunks of one reply: the role, the tokens, and the finish reason in the last one (or in an empty one)."""
    yield _chat_choice(index, {"role": "assistant", "content": ""})
    if reply.tool is not None:
        yield from _tool_choices(index, reply)
        return
    *tokens, last = reply.tokens or [""]
    for token in tokens:
        yield _chat_choice(index, {"content": token}, _logprobs(call, [token])) | {"token_ids": None}
    yield _chat_choice(index, {"content": last}, _logprobs(call, [last])) | _ending(reply)


def _tool_choices(index: int, reply: Reply) -> Iterator[Json]:
    start = {"id": _tool_call_id(), "type": "function", "index": 0, "function": {"name": reply.tool}}
    fragments = ({"index": 0, "function": {"arguments": token}} for token in reply.tokens)
    for tool_call in (start, *fragments):
        yield _chat_choice(index, {"content": None, "tool_calls": [tool_call]}) | {"token_ids": None}
    yield _chat_choice(index, {}) | _ending(reply)


def _chat_choice(index: int, delta: Json, logprobs: Json | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _text_choices(index: int, reply: Reply) -> Iterator[Json]:
    *tokens, last = reply.tokens or [""]
    tail = dict.fromkeys(("logprobs", "finish_reason", "stop_reason", "prompt_token_ids", "token_ids"))
    for token in tokens:
        yield {"index": index, "text": token} | tail
    yield {"index": index, "text": last} | tail | _ending(reply)


def _ending(reply: Reply) -> Json:
    return {"finish_reason": reply.finish_reason, "stop_reason": reply.stop_reason, "token_ids": None}


def _message(reply: Reply) -> Json:
    message: Json = {"role": "assistant", "content": reply.text if reply.tool is None else ""}
    message |= dict.fromkeys(("refusal", "annotations", "audio", "function_call"))
    if reply.tool is not None:
        function = {"name": reply.tool, "arguments": reply.text}
        message["tool_calls"] = [{"id": _tool_call_id(), "type": "function", "function": function}]
    return message | {"reasoning": None}


def _logprobs(call: Call, tokens: list[str], *, tool: str | None = None) -> Json | None:
    """Log probabilities, if requested: the echo model is nearly certain of every token."""
    if not call.body.get("logprobs") or tool is not None:
        return None
    top = min(call.body.get("top_logprobs") or 0, 20)
    return {"content": [_logprob(token, 0) | {"top_logprobs": _top_logprobs(token, top)} for token in tokens]}


def _top_logprobs(token: str, top: int) -> list[Json]:
    return [_logprob(token + "…" * rank, rank) for rank in range(top)]


def _logprob(token: str, rank: int) -> Json:
    return {"token": token, "logprob": -0.125 - 3.0 * rank, "bytes": list(token.encode(errors="replace"))}


def _head(call: Call, kind: str) -> Json:
    return {"id": call.id, "object": kind, "created": call.created, "model": call.model}


def _whole_tail(call: Call, replies: list[Reply], prompt: Json) -> Json:
    usage = _usage(call, _total(replies)) | {"prompt_tokens_details": None, "completion_tokens_details": None}
    tail = {"service_tier": None, "system_fingerprint": FINGERPRINT, "usage": usage}
    return tail | prompt | dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))


def _usage(call: Call, completion_tokens: int) -> Json:
    total = call.prompt_tokens + completion_tokens
    return {"prompt_tokens": call.prompt_tokens, "total_tokens": total, "completion_tokens": completion_tokens}


def _total(replies: list[Reply]) -> int:
    return sum(len(reply.tokens) for reply in replies)


def _tool_call_id() -> str:
    return f"chatcmpl-tool-{secrets.token_hex(8)}"


def _event(chunk: Json) -> bytes:
    return b"data: " + dumps(chunk) + b"\n\n"
