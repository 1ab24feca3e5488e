"""Validates the demo's requests, and raises the same errors as vLLM."""

import json
import secrets
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request

from proxy.demo.echo import text_of, tokenize

MODEL = "stellarchat-demo"
MAX_MODEL_LEN = 8192  # tokens, as vLLM says in `/v1/models`
# Each choice is generated whole: without a limit, one request could fill the memory.
MAX_CHOICES = 64
# A longer text exceeds the context length in any case, so it is not tokenized.
MAX_TEXT_LENGTH = 32 * MAX_MODEL_LEN

# The types that vLLM checks, with the names and messages of Pydantic's errors, which clients may match.
_TYPES: dict[str, tuple[tuple[type, ...], str, str]] = {
    "messages": ((list,), "list_type", "Input should be a valid list"),
    "model": ((str,), "string_type", "Input should be a valid string"),
    "stream": ((bool,), "bool_parsing", "Input should be a valid boolean, unable to interpret input"),
    "stream_options": ((dict,), "dict_type", "Input should be a valid dictionary"),
    "response_format": ((dict,), "dict_type", "Input should be a valid dictionary"),
    "tools": ((list,), "list_type", "Input should be a valid list"),
    "tool_choice": ((str, dict), "dict_type", "Input should be a valid dictionary"),
    "stop": ((str, list), "list_type", "Input should be a valid list"),
    "n": ((int,), "int_type", "Input should be a valid integer"),
    "max_tokens": ((int,), "int_type", "Input should be a valid integer"),
    "max_completion_tokens": ((int,), "int_type", "Input should be a valid integer"),
    "top_logprobs": ((int,), "int_type", "Input should be a valid integer"),
    "temperature": ((int, float), "float_type", "Input should be a valid number"),
}


class DemoError(Exception):
    """An error in vLLM's format."""

    def __init__(self, status: int, message: str, *, kind: str, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class Call(NamedTuple):
    """A validated request: its body, the values its chunks repeat, and the token limit per choice."""

    body: dict[str, Any]
    id: str
    created: int
    model: str
    prompt_tokens: int
    room: int
    choice_count: int


async def read_chat(request: Request) -> Call:
    body = await read_body(request, required="messages")
    messages = body["messages"]
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _invalid(f"body.messages.{index}", "dict_type", "Input should be a valid dictionary", message)
    # Four tokens per message for the role and delimiters that a chat template adds.
    prompt_tokens = 4 * len(messages) + _count_tokens(text_of(message.get("content")) for message in messages)
    return _call(request, body, prefix="chatcmpl", prompt_tokens=prompt_tokens, default_room=MAX_MODEL_LEN)


async def read_completion(request: Request) -> tuple[Call, list[str]]:
    body = await read_body(request, required="prompt")
    prompt = body["prompt"]
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not all(isinstance(each, str) for each in prompts):
        raise _invalid("body.prompt", "string_type", "Input should be a valid string", prompt)
    prompt_tokens = _count_tokens(prompts)
    return _call(request, body, prefix="cmpl", prompt_tokens=prompt_tokens, default_room=16), prompts


async def read_body(request: Request, *, required: str) -> dict[str, Any]:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise _validation("Unsupported Media Type: Only 'application/json' is allowed", None)
    body = _parse(await request.body())
    if not isinstance(body, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise _invalid("body", "model_attributes_type", message, body)
    if required not in body:
        raise _invalid(f"body.{required}", "missing", "Field required", body)
    for name, (types, kind, message) in _TYPES.items():
        if not isinstance(body.get(name), types) and (name == required or body.get(name) is not None):
            raise _invalid(f"body.{name}", kind, message, body[name])
    return body


def _parse(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        detail = f"'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {{'error': {error.msg!r}}}"
        raise _validation(
            f"{{'type': 'json_invalid', 'loc': 'body.{error.pos}', {detail}}}", f"body.{error.pos}"
        ) from error
    except (ValueError, RecursionError) as error:  # invalid UTF-8, an oversized number, or too deep nesting
        raise HTTPException(400, "There was an error parsing the body") from error


def _call(request: Request, body: dict[str, Any], *, prefix: str, prompt_tokens: int, default_room: int) -> Call:
    model = body.get("model") or MODEL
    if model != MODEL:
        message = f"The model `{model}` does not exist. Valid aliases: {MODEL}."
        raise DemoError(404, message, kind="NotFoundError", param="model")
    temperature = body.get("temperature") or 0
    if temperature < 0:
        raise _bad("temperature", f"temperature must be non-negative, got {float(temperature)}.", float(temperature))
    return Call(
        body=body,
        id=f"{prefix}-{request.headers.get('x-request-id') or secrets.token_hex(8)}",
        created=int(time.time()),
        model=model,
        prompt_tokens=prompt_tokens,
        room=_room(body, prompt_tokens=prompt_tokens, default=default_room),
        choice_count=_choice_count(body),
    )


def _count_tokens(texts: Iterable[str]) -> int:
    """The number of tokens; for texts that are far too long, one more than the context length."""
    count = 0
    for text in texts:
        count += len(tokenize(text)) if len(text) < MAX_TEXT_LENGTH else MAX_MODEL_LEN + 1
        if count > MAX_MODEL_LEN:
            break
    return count


def _room(body: dict[str, Any], *, prompt_tokens: int, default: int) -> int:
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    asked = body.get(name)
    if asked is not None and asked < 1:
        raise _bad(name, f"{name} must be at least 1, got {asked}.", asked)
    if asked is not None and asked > MAX_MODEL_LEN:
        message = f"{name}={asked} cannot be greater than max_model_len={MAX_MODEL_LEN}."
        raise _bad(name, f"{message} Please request fewer output tokens.", asked)
    if prompt_tokens >= MAX_MODEL_LEN:
        raise _bad(
            "input_tokens",
            f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, your prompt contains at least "
            f"{MAX_MODEL_LEN + 1} input tokens, which exceeds this limit even without any output tokens. Please "
            "reduce the length of the input prompt.",
            MAX_MODEL_LEN + 1,
        )
    return min(default if asked is None else int(asked), MAX_MODEL_LEN - prompt_tokens)


def _choice_count(body: dict[str, Any]) -> int:
    count = 1 if body.get("n") is None else int(body["n"])
    if not 1 <= count <= MAX_CHOICES:
        raise _bad("n", f"n must be at least 1 and at most {MAX_CHOICES}, got {count}.", count)
    return count


def _bad(param: str, message: str, value: object) -> DemoError:
    full = f"{message} (parameter={param}, value={value})"
    return DemoError(400, full, kind="BadRequestError", param=param)


def _invalid(place: str, kind: str, message: str, value: object) -> DemoError:
    shown = repr(f"<{type(value).__name__} of {len(value)} items>" if isinstance(value, (dict, list)) else value)
    return _validation(f"{{'type': '{kind}', 'loc': '{place}', 'msg': '{message}', 'input': {shown:.100}}}", place)


def _validation(line: str, param: str | None) -> DemoError:
    return DemoError(400, f"1 validation error:\n  {line}", kind="Bad Request", param=param)
