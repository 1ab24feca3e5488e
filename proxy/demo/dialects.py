"""The demo's replies on `/v1/responses` and `/v1/messages`, in the format of vLLM 0.32. Text only, no tool calls."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from proxy.demo.call import MODEL
from proxy.demo.echo import Reply, answer, as_list, text_of, tokenize
from proxy.demo.wire import dumps

Json = dict[str, Any]

_ROOM = 4096  # tokens, if the request sets no limit


def reply_to_response(request: Json) -> Reply:
    """The model's reply to a Responses request."""
    given = request.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else as_list(given)
    return _reply(items, room=request.get("max_output_tokens"))


def reply_to_message(request: Json) -> Reply:
    """The model's reply to a Messages request."""
    return _reply(as_list(request.get("messages")), room=request.get("max_tokens"))


def _reply(messages: list[Any], *, room: object) -> Reply:
    said = _objects(messages)
    limit = room if isinstance(room, int) and room > 0 else _ROOM
    return answer({"messages": said}, index=0, room=limit)


def _objects(value: object) -> list[Json]:
    return [each for each in as_list(value) if isinstance(each, dict)]


def response(request: Json, reply: Reply) -> Json:
    """A whole response."""
    is_cut = reply.finish_reason == "length"
    content: list[Json] = [{"type": "output_text", "text": reply.text, "annotations": [], "logprobs": None}]
    message = {"type": "message", "role": "assistant", "status": "completed", "phase": None, "content": content}
    asked = len(tokenize(text_of(request.get("input")))) + 1
    return {
        "id": f"resp_{secrets.token_hex(8)}",
        "object": "response",
        "created_at": int(time.time()),
        "model": MODEL,
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "error": None,
        "instructions": request.get("instructions"),
        "metadata": request.get("metadata"),
        "output": [{"id": f"msg_{secrets.token_hex(8)}", **message}],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "temperature": request.get("temperature", 1.0),
        "tool_choice": request.get("tool_choice", "auto"),
        "tools": as_list(request.get("tools")),
        "top_p": request.get("top_p", 1.0),
        "usage": {
            "input_tokens": asked,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": len(reply.tokens),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": asked + len(reply.tokens),
        },
    }


def response_events(request: Json, reply: Reply, *, pause_seconds: float) -> AsyncIterator[bytes]:
    """The numbered events of a response."""
    numbered = ({**event, "sequence_number": number} for number, event in enumerate(_response_events(request, reply)))
    return _paced(numbered, pause_seconds=pause_seconds)


def _response_events(request: Json, reply: Reply) -> Iterator[Json]:
    whole = response(request, reply)
    begun = {**whole, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    item = whole["output"][0]
    part = item["content"][0]
    at = {"output_index": 0, "content_index": 0, "item_id": item["id"]}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    empty = {**item, "status": "in_progress", "content": []}
    yield {"type": "response.output_item.added", "output_index": 0, "item": empty}
    yield {"type": "response.content_part.added", **at, "part": {**part, "text": "", "logprobs": []}}
    for token in reply.tokens:
        yield {"type": "response.output_text.delta", **at, "delta": token, "logprobs": []}
    yield {"type": "response.output_text.done", **at, "text": reply.text, "logprobs": []}
    yield {"type": "response.content_part.done", **at, "part": part}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": whole}


def message(request: Json, reply: Reply) -> Json:
    """A whole message."""
    asked = sum(len(tokenize(text_of(each.get("content")))) for each in _objects(request.get("messages")))
    return {
        "id": f"chatcmpl-{secrets.token_hex(8)}",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": reply.text}],
        "model": MODEL,
        "stop_reason": "max_tokens" if reply.finish_reason == "length" else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": asked + 1, "output_tokens": len(reply.tokens)},
    }


def message_events(request: Json, reply: Reply, *, pause_seconds: float) -> AsyncIterator[bytes]:
    """The events of a message."""
    return _paced(_message_events(request, reply), pause_seconds=pause_seconds)


def _message_events(request: Json, reply: Reply) -> Iterator[Json]:
    whole = message(request, reply)
    usage = {**whole["usage"], "output_tokens": 0}
    yield {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None, "usage": usage}}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    for token in reply.tokens:
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": token}}
    yield {"type": "content_block_stop", "index": 0}
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": whole["usage"]}
    yield {"type": "message_stop"}


async def _paced(events: Iterable[Json], *, pause_seconds: float) -> AsyncIterator[bytes]:
    for event in events:
        yield b"event: " + event["type"].encode() + b"\ndata: " + dumps(event) + b"\n\n"
        if event["type"].endswith("delta"):
            await asyncio.sleep(pause_seconds)
