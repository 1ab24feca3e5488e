"""The text of a reply from its bytes, however far they came: of chat completions and of responses."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def of_events(raw: bytes) -> str:
    """The text of a stream. Lines that are no event, as where it was cut, give none."""
    return "".join(_pieces(raw))


def _pieces(raw: bytes) -> Iterator[str]:
    for line in raw.split(b"\n"):
        event = parsed(line.removeprefix(b"data: "))
        if event.get("type") == "response.output_text.delta":
            yield event["delta"]
        for choice in event.get("choices") or ():
            yield (choice.get("delta") or {}).get("content") or ""


def of_body(raw: bytes) -> str:
    """The text of a whole reply; none where the body is no JSON object."""
    return of_reply(parsed(raw))


def of_reply(reply: Mapping[str, Any]) -> str:
    if "choices" in reply:
        return "".join(choice["message"]["content"] or "" for choice in reply["choices"])
    return "".join(part["text"] for item in reply.get("output", ()) for part in item.get("content", ()))


def parsed(raw: bytes | str) -> dict[str, Any]:
    """The JSON object; an empty one where it is none."""
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
