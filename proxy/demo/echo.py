"""The demo's model: generates a reply to a chat as tokens. Pure; `demo/wire.py` adds the wire format."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# In scripts without spaces every character is a token, similar to a real tokenizer.
_UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"\s?(?:[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+|[^\w\s])|\s")

# A JSON schema may be recursive or huge; a sample of it is made within these limits.
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_STEPS = 1000
MAX_SAMPLE_ITEMS = 64
MAX_SAMPLE_LENGTH = 1024
ANY = {"type": "string"}


@dataclass(frozen=True, slots=True)
class Reply:
    """One choice. If `tool` is set, the tokens are the arguments of that function, else the text."""

    tokens: list[str]
    finish_reason: str
    stop_reason: str | None = None
    tool: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.tokens)


def tokenize(text: str) -> list[str]:
    return _TOKEN.findall(text)


def text_of(content: object) -> str:
    """The text of a message's content (a string or parts); other parts are represented by their type."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return " ".join(_part_text(part) for part in content)


def _part_text(part: object) -> str:
    if not isinstance(part, dict):
        return str(part)
    text = part.get("text")
    return text if isinstance(text, str) else f"[{part.get('type', 'part')}]"


def answer(request: dict[str, Any], *, index: int, room: int) -> Reply:
    """Generates choice number `index` for a validated request, with at most `room` tokens."""
    tool = _forced_tool(request)
    if tool is not None:
        name, parameters, finish_reason = tool
        tokens = tokenize(_dumps(sample(parameters)))
        return Reply(tokens[:room], finish_reason if len(tokens) <= room else "length", tool=name)
    return cut(_text_answer(request, index), stop=request.get("stop"), room=room)


def cut(text: str, *, stop: object, room: int) -> Reply:
    """The text up to a stop sequence or `room` tokens, whichever comes first."""
    tokens = tokenize(text)
    within = "".join(tokens[:room])
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    hits = [(within.index(each), each) for each in stops if isinstance(each, str) and each and each in within]
    if hits:
        position, hit = min(hits)
        return Reply(tokenize(within[:position]), "stop", stop_reason=hit)
    return Reply(tokens[:room], "length" if len(tokens) > room else "stop")


def _forced_tool(request: dict[str, Any]) -> tuple[str, object, str] | None:
    """Name, parameters and finish reason of the function required by `tool_choice`."""
    functions = [as_dict(as_dict(tool).get("function")) for tool in as_list(request.get("tools"))]
    choice = request.get("tool_choice")
    if choice == "required" and functions:
        return str(functions[0].get("name")), functions[0].get("parameters"), "tool_calls"
    name = as_dict(as_dict(choice).get("function")).get("name")
    for function in functions:
        if name is not None and function.get("name") == name:
            # vLLM ends a call of a named function with "stop", and of a required one with "tool_calls".
            return str(name), function.get("parameters"), "stop"
    return None


def _text_answer(request: dict[str, Any], index: int) -> str:
    messages = request["messages"]
    said = [text_of(message.get("content")) for message in messages if message.get("role") == "user"]
    last = said[-1] if said else ""
    wanted = request.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        return _dumps(sample(as_dict(wanted.get("json_schema")).get("schema")))
    if wanted.get("type") == "json_object":
        return _dumps({"demo": True, "you_said": last, "turn": len(said)})
    if messages and messages[-1].get("role") == "tool":
        return f"The tool answered: {text_of(messages[-1].get('content'))}"
    return _echo_text(last, turn=len(said), index=index)


def _echo_text(last: str, *, turn: int, index: int) -> str:
    start = f"You said: {last}" if last else "You said nothing."
    turns = f"This is turn {turn} of our chat" if turn > 1 else "I am StellarChat's demo model"
    another = f" (choice {index + 1})" if index else ""
    return f"{start}\n\n{turns}{another}; I only echo, no GPU needed."


def sample(schema: object) -> object:
    """The simplest value that matches a JSON schema; null for unsupported schemas."""
    return _Sampler(root=schema).value(schema, depth=0) if schema else {}


@dataclass(slots=True)
class _Sampler:
    """Walks a schema with a step limit, because references can describe an infinite value."""

    root: object
    steps: int = 0

    def value(self, schema: object, *, depth: int) -> object:
        self.steps += 1
        if not isinstance(schema, dict) or depth > MAX_SCHEMA_DEPTH or self.steps > MAX_SCHEMA_STEPS:
            return None
        for key in ("const", "default"):
            if key in schema:
                return schema[key]
        for key in ("enum", "examples"):
            if isinstance(schema.get(key), list) and schema[key]:
                return schema[key][0]
        for inner in self._alternatives(schema):
            return self.value(inner, depth=depth + 1)
        return self._typed(schema, depth=depth + 1)

    def _alternatives(self, schema: dict[str, Any]) -> Iterator[object]:
        if isinstance(schema.get("$ref"), str):
            target = self.root
            for step in schema["$ref"].removeprefix("#").strip("/").split("/"):
                target = target.get(step) if isinstance(target, dict) and step else target
            yield target
        for key in ("anyOf", "oneOf", "allOf"):
            yield from as_list(schema.get(key))

    def _typed(self, schema: dict[str, Any], *, depth: int) -> object:
        kind = schema.get("type", "object" if "properties" in schema else None)
        match kind[0] if isinstance(kind, list) and kind else kind:
            case "object":
                properties = as_dict(schema.get("properties"))
                names = [name for name in as_list(schema.get("required")) if isinstance(name, str)] or list(properties)
                return {name: self.value(properties.get(name, ANY), depth=depth) for name in names}
            case "array":
                count = min(_whole(schema, "minItems", 1), MAX_SAMPLE_ITEMS)
                return [self.value(schema.get("items", ANY), depth=depth) for _ in range(count)]
            case "string":
                least, most = _whole(schema, "minLength", 0), _whole(schema, "maxLength", MAX_SAMPLE_LENGTH)
                return "demo".ljust(min(least, MAX_SAMPLE_LENGTH), ".")[:most]
            case "integer" | "number":
                return _whole(schema, "minimum", 0)
            case "boolean":
                return False
        return None


def _whole(schema: dict[str, Any], key: str, default: int) -> int:
    value = schema.get(key)
    return value if isinstance(value, int) and value >= 0 else default


def as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
