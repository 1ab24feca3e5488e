"""The bytes of the benchmark on the endpoints other than chat: requests, replies, and a check of what came."""

import json
from collections.abc import Callable

from tests.bench import wire
from tests.bench.wire import MODEL, TERMINATOR, Split, body_of, split_at_id, token_texts

_ID = "0123456789abcdef"
CHAT = "chat"
PATHS = {"responses": "/v1/responses", "messages": "/v1/messages"}


def path_of(endpoint: str) -> str:
    return PATHS.get(endpoint, "/v1/chat/completions")


def question(endpoint: str, text: str) -> dict[str, object]:
    """What a request must have beside its model."""
    return {"input": text} if endpoint == "responses" else {"messages": [{"role": "user", "content": text}]}


def request(endpoint: str, *, host: str, stream: bool = True, model: str = MODEL) -> tuple[bytes, bytes]:
    """A request, split where a number of eight digits tells requests apart."""
    if endpoint == CHAT:
        return wire.chat_request(host=host, stream=stream, model=model)
    asked = "Question ######## of today: what is the capital of France, and how many people live there?"
    body = {"model": model, "stream": stream, "temperature": 0.7, **question(endpoint, asked)}
    if endpoint == "responses":
        body |= {"instructions": "Answer briefly.", "max_output_tokens": 400}
    else:
        body |= {"system": "Answer briefly.", "max_tokens": 400}
    text = json.dumps(body).encode()
    head = (
        f"POST {PATHS[endpoint]} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\n"
        f"Content-Type: application/json\r\nAuthorization: Bearer sk-bench\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    before, _, after = (head.encode() + text).partition(b"########")
    return before, after


def stream_events(endpoint: str, tokens: int) -> list[Split]:
    """As `wire.stream_events`: what comes before the first token, each token, and what comes after the last."""
    make = _responses_events if endpoint == "responses" else _messages_events
    before, deltas, after = make(token_texts(tokens))
    return [_framed(before), *(_framed([delta]) for delta in deltas), _framed(after)]


def whole_response() -> Split:
    """A `response` with its head, split at its id."""
    after = _responses_events([wire.REPLY])[2]
    return split_at_id(wire.plain_reply("200 OK", after[-1]["response"]))


def done() -> bytes:
    """What ends such a stream: its last event has said that it is the last."""
    return TERMINATOR


def check_stream(endpoint: str, raw: bytes, *, tokens: int, sends_done: bool = True) -> None:
    """Raise ValueError unless the response holds every token in order, and its last event."""
    if endpoint == CHAT:
        wire.check_stream(raw, tokens=tokens, sends_done=sends_done)
        return
    # Some relays end a stream of responses with [DONE], which is no JSON.
    events = [json.loads(line[6:]) for line in body_of(raw).split(b"\n") if line.startswith(b"data: {")]
    last = {"responses": "response.completed", "messages": "message_stop"}[endpoint]
    if not events or events[-1]["type"] != last:
        raise ValueError(f"no {last} after {len(events)} events")
    piece: Callable[[dict[str, str]], str] = _piece_of_response if endpoint == "responses" else _piece_of_message
    if "".join(map(piece, events)) != "".join(token_texts(tokens)):
        raise ValueError("the text is another one")


def check_whole(endpoint: str, raw: bytes) -> None:
    """Raise ValueError unless the response is the whole reply."""
    if endpoint == CHAT:
        wire.check_whole(raw)
        return
    reply = json.loads(body_of(raw))
    if reply["status"] != "completed" or reply["output"][0]["content"][0]["text"] != wire.REPLY:
        raise ValueError("a response that is not completed, or has another text")


def _piece_of_response(event: dict[str, str]) -> str:
    return event["delta"] if event["type"] == "response.output_text.delta" else ""


def _piece_of_message(event: dict[str, str]) -> str:
    delta: object = event.get("delta")
    return str(delta.get("text", "")) if isinstance(delta, dict) else ""


Events = list[dict[str, object]]


def _responses_events(texts: list[str]) -> tuple[Events, Events, Events]:
    item = {"id": f"msg_{_ID}{_ID}", "content": [], "role": "assistant", "status": "in_progress", "type": "message"}
    place = {"content_index": 0, "item_id": item["id"], "output_index": 0}
    part: dict[str, object] = {"annotations": [], "text": "".join(texts), "type": "output_text", "logprobs": None}
    said = {**item, "content": [part], "status": "completed"}
    response = {"id": f"resp_{_ID}", "created_at": 1795312427, "model": MODEL, "object": "response", "output": []}
    usage = {"input_tokens": 61, "output_tokens": len(texts), "total_tokens": 61 + len(texts)}
    begun = {**response, "status": "in_progress", "usage": None}
    ended = {**response, "status": "completed", "usage": usage, "output": [said]}
    before: Events = [
        {"response": begun, "type": "response.created"},
        {"response": begun, "type": "response.in_progress"},
        {"item": item, "output_index": 0, "type": "response.output_item.added"},
        {**place, "part": {**part, "text": ""}, "type": "response.content_part.added"},
    ]
    deltas: Events = [{**place, "delta": text, "logprobs": [], "type": "response.output_text.delta"} for text in texts]
    after: Events = [
        {**place, "text": part["text"], "logprobs": [], "type": "response.output_text.done"},
        {**place, "part": part, "type": "response.content_part.done"},
        {"item": said, "output_index": 0, "type": "response.output_item.done"},
        {"response": ended, "type": "response.completed"},
    ]
    for number, event in enumerate([*before, *deltas, *after]):
        kind = event.pop("type")
        event |= {"sequence_number": number, "type": kind}  # where vLLM writes them
    return before, deltas, after


def _messages_events(texts: list[str]) -> tuple[Events, Events, Events]:
    message: dict[str, object] = {
        "id": f"chatcmpl-{_ID}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": MODEL,
    }
    message |= {"stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 61, "output_tokens": 0}}
    before: Events = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "content_block": {"type": "text", "text": ""}, "index": 0},
    ]
    deltas: Events = [
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}, "index": 0} for text in texts
    ]
    usage = {"input_tokens": 61, "output_tokens": len(texts)}
    after: Events = [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]
    return before, deltas, after


def _framed(events: Events) -> Split:
    """Events as one HTTP chunk, split at the reply's id where they hold it once."""
    texts = [json.dumps(event, ensure_ascii=False, separators=(",", ":")) for event in events]
    body = "".join(f"event: {event['type']}\ndata: {text}\n\n" for event, text in zip(events, texts, strict=True))
    data = body.encode()
    return split_at_id(b"%x\r\n%b\r\n" % (len(data), data))
