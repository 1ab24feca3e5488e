"""A model that speaks every dialect, as vLLM does: it answers a question with the number of messages it was given."""

import json
from typing import Any

from tests.fake_upstream import STREAM_HEADERS, Behaviour, Call, Wire, chunk_bytes, dumps, head_bytes

JSON = dict[str, Any]
TOOL_CALL = "call the tool"


def events_text(events: list[JSON]) -> list[bytes]:
    return [b"event: " + each["type"].encode() + b"\ndata: " + dumps(each) + b"\n\n" for each in events]


def response_of(number: int, request: JSON) -> JSON:
    """A whole response, as vLLM 0.32 sends it."""
    given = request["input"]
    last = json.dumps(given[-1] if isinstance(given, list) and given else given)
    said: JSON
    if TOOL_CALL in last:
        said = {"type": "function_call", "id": f"fc_up{number}", "call_id": f"call_{number}", "name": "tool"}
        said |= {"arguments": '{"n":1}', "status": "completed"}
    else:
        text = f"answer {number} to {len(given) if isinstance(given, list) else 1} items"
        content: list[JSON] = [{"type": "output_text", "text": text, "annotations": [], "logprobs": None}]
        said = {
            "type": "message",
            "id": f"msg_up{number}",
            "role": "assistant",
            "status": "completed",
            "content": content,
        }
    thought = {"type": "reasoning_text", "text": f"thought {number}"}
    reasoning = {"type": "reasoning", "id": f"rs_up{number}", "summary": [], "content": [thought], "status": None}
    return {
        "id": f"resp_up{number}",
        "object": "response",
        "created_at": 1_700_000_000 + number,
        "model": request.get("model"),
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "metadata": request.get("metadata"),
        "output": [reasoning, said],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": request.get("tools") or [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": 7,
            "input_tokens_details": {"cached_tokens": 3},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 12,
        },
    }


_GROWING = {"function_call": "arguments", "custom_tool_call": "input", "mcp_call": "arguments"}
_GROWING |= {"code_interpreter_call": "code"}
_TEXTS = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text", "summary_text": "text"}


def response_events(response: JSON) -> list[JSON]:
    """A response of any items, each in pieces."""
    events: list[JSON] = [
        {"type": "response.created", "response": {**response, "status": "in_progress", "output": [], "usage": None}}
    ]
    for index, item in enumerate(response["output"]):
        at = {"output_index": index, "item_id": item["id"]}
        empty = {**item, **{key: [] for key in ("content", "summary") if isinstance(item.get(key), list)}}
        grows = _GROWING.get(item["type"])
        if grows is not None:
            empty[grows] = ""
        started = {**empty, "status": "in_progress"} if "status" in item else empty
        events.append({"type": "response.output_item.added", "output_index": index, "item": started})
        for place in ("summary", "content"):
            if isinstance(item.get(place), list):
                for number, part in enumerate(item[place]):
                    events += _part_events(part, {**at, f"{place}_index": number})
        if grows is not None:
            name = f"response.{item['type'].removesuffix('_call')}_call_{grows}".replace(
                "custom_call", "custom_tool_call"
            )
            events += [{"type": f"{name}.delta", **at, "delta": piece} for piece in _in_pieces(item[grows])]
            events.append({"type": f"{name}.done", **at, grows: item[grows]})
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    events.append({"type": "response.completed", "response": response})
    return [{**each, "sequence_number": number} for number, each in enumerate(events)]


def _part_events(part: JSON, at: JSON) -> list[JSON]:
    key = _TEXTS.get(part["type"])
    stem = "reasoning_summary_part" if "summary_index" in at else "content_part"
    if key is None:
        return [{"type": f"response.{stem}.added", **at, "part": part}]
    name = "reasoning_summary_text" if "summary_index" in at else part["type"]
    annotations, logprobs = part.get("annotations") or [], part.get("logprobs") or []
    empty = {**part, key: ""} | {name: [] for name in ("annotations", "logprobs") if part.get(name)}
    deltas = [{"type": f"response.{name}.delta", **at, "delta": piece} for piece in _in_pieces(part[key])]
    if logprobs:
        deltas[0]["logprobs"] = logprobs
    return [
        {"type": f"response.{stem}.added", **at, "part": empty},
        *deltas,
        *(
            {"type": "response.output_text.annotation.added", **at, "annotation_index": number, "annotation": each}
            for number, each in enumerate(annotations)
        ),
        {"type": f"response.{name}.done", **at, key: part[key]},
        {"type": f"response.{stem}.done", **at, "part": part},
    ]


def _in_pieces(text: str) -> list[str]:
    return [text[start : start + 4] for start in range(0, len(text), 4)]


def message_of(number: int, request: JSON) -> JSON:
    """A whole message, as Anthropic's API has it."""
    last = json.dumps(request["messages"][-1]["content"])
    said: JSON = {"type": "text", "text": f"answer {number} to {len(request['messages'])} messages"}
    if TOOL_CALL in last:
        said = {"type": "tool_use", "id": f"toolu_{number}", "name": "tool", "input": {"n": 1}}
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": request.get("model"),
        "content": [{"type": "thinking", "thinking": f"thought {number}", "signature": f"sig{number}"}, said],
        "stop_reason": "tool_use" if said["type"] == "tool_use" else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 4,
            "cache_read_input_tokens": 2,
            "cache_creation_input_tokens": 1,
            "output_tokens": 5,
        },
    }


def message_events(message: JSON) -> list[JSON]:
    """A message of any blocks, each in pieces."""
    start = {**message, "content": [], "stop_reason": None, "usage": {"input_tokens": 4, "output_tokens": 0}}
    events: list[JSON] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(message["content"]):
        deltas = _block_deltas(block)
        given = {key for delta in deltas for key in delta} | ({"input"} if "tool_use" in block["type"] else set())
        empty = {key: {} if key == "input" else "" for key in block if key in given}
        started = {key: each for key, each in block.items() if key != "citations"} | empty
        events.append(
            {"type": "content_block_start", "index": index, "content_block": started | {"type": block["type"]}}
        )
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    return [*events, {"type": "message_delta", "delta": delta, "usage": message["usage"]}, {"type": "message_stop"}]


def _block_deltas(block: JSON) -> list[JSON]:
    kind = block["type"]
    if kind == "thinking":
        pieces = [{"type": "thinking_delta", "thinking": piece} for piece in _in_pieces(block["thinking"])]
        return [*pieces, {"type": "signature_delta", "signature": block["signature"]}]
    if kind == "text":
        cited = [{"type": "citations_delta", "citation": each} for each in block.get("citations") or ()]
        return [*({"type": "text_delta", "text": piece} for piece in _in_pieces(block["text"])), *cited]
    if kind.endswith("tool_use"):
        texts = ["", *_in_pieces(json.dumps(block["input"])), ""]
        return [{"type": "input_json_delta", "partial_json": piece} for piece in texts]
    return []


def chat_of(number: int, request: JSON) -> JSON:
    last = json.dumps(request["messages"][-1].get("content"))
    message: JSON = {"role": "assistant", "content": f"answer {number} to {len(request['messages'])} messages"}
    finish = "stop"
    if TOOL_CALL in last:
        function = {"name": "tool", "arguments": '{"n":1}'}
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}],
        }
        finish = "tool_calls"
    return {
        "id": f"chatcmpl-up{number}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": request.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }


def chat_events(whole: JSON, request: JSON) -> list[bytes]:
    """A chat's chunks, its usage where that is asked for, and the end."""
    message, finish = whole["choices"][0]["message"], whole["choices"][0]["finish_reason"]
    text = message["content"] or ""
    deltas: list[JSON] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": text[start : start + 4]} for start in range(0, len(text), 4)]
    deltas += [{"tool_calls": [{"index": 0, **call}]} for call in message.get("tool_calls", ())]
    head = {**whole, "object": "chat.completion.chunk"}
    usage = head.pop("usage")
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if (request.get("stream_options") or {}).get("include_usage"):
        chunks.append({**head, "choices": [], "usage": usage})
    return [*(b"data: " + dumps(each) + b"\n\n" for each in chunks), b"data: [DONE]\n\n"]


def stream_of(path: str, whole: JSON, request: JSON) -> list[bytes]:
    if path == "/v1/chat/completions":
        return chat_events(whole, request)
    return events_text(response_events(whole) if path == "/v1/responses" else message_events(whole))


def every_dialect() -> Behaviour:
    """Answers each endpoint in its dialect, streaming where it is asked to."""

    async def behave(call: Call, wire: Wire) -> None:
        request = call.json()
        makers = {"/v1/responses": response_of, "/v1/messages": message_of, "/v1/chat/completions": chat_of}
        whole = makers[call.path](call.number, request)
        if request.get("stream"):
            await wire.head(200, STREAM_HEADERS)
            for each in stream_of(call.path, whole, request):
                await wire.send(chunk_bytes(each))
            await wire.send(b"0\r\n\r\n")
            return
        body = dumps(whole)
        await wire.send(
            head_bytes(200, [("content-type", "application/json"), ("content-length", str(len(body)))]) + body
        )

    return behave
