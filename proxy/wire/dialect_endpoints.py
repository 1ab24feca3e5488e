"""Responses, Messages and Completions as endpoints: each reads requests, folds replies and says errors its own way."""

from collections.abc import Callable
from typing import Any

import orjson

from proxy.wire import anthropic, chat_request, completions, responses
from proxy.wire.anthropic_reply import MessageReply
from proxy.wire.completions import CompletionReply
from proxy.wire.dialect import JSON, Conversation
from proxy.wire.endpoint import Reply, Request
from proxy.wire.message import is_message
from proxy.wire.responses_reply import ResponseReply


class DialectRequest:
    """A request body that is a JSON object."""

    def __init__(self, body: JSON, conversation: Conversation) -> None:
        self.body = body
        # Recording refuses nothing: what cannot be stored as messages is kept as it is.
        can_be_stored = all(map(is_message, conversation.messages))
        self.messages: list[JSON] = list(conversation.messages) if can_be_stored else []
        self.parameters: JSON = (
            conversation.parameters if can_be_stored else {key: each for key, each in body.items() if key != "metadata"}
        )
        self.wire = conversation.wire

    @property
    def wants_stream(self) -> bool:
        return self.body.get("stream") is True


class DialectEndpoint:
    """One dialect, of its parts."""

    def __init__(
        self,
        name: str,
        path: str,
        conversation_of: Callable[[JSON], Conversation],
        reply: Callable[[JSON | None], Reply],
    ) -> None:
        self.name = name
        self.path = path
        self._conversation_of = conversation_of
        self._reply = reply

    def parse(self, body: bytes) -> DialectRequest | None:
        """The request; None where the body is no JSON object."""
        value = chat_request.parse(body)
        return None if value is None else self.request(value)

    def request(self, body: JSON) -> DialectRequest:
        return DialectRequest(body, self._conversation_of(body))

    def reply(self, request: Request | None = None) -> Reply:
        return self._reply(None if request is None else request.body)

    def with_usage(self, body: bytes, request: Request) -> bytes | None:
        """Nothing: these streams always say their usage."""
        return None

    def error_event(self, error: JSON) -> bytes:
        return b"data: " + self.error_body(error) + b"\n\n"

    def error_body(self, error: JSON) -> bytes:
        return orjson.dumps({"error": error})


class CompletionsEndpoint(DialectEndpoint):
    """OpenAI's completions, whose streams say their usage where they are asked to."""

    def with_usage(self, body: bytes, request: Request) -> bytes | None:
        return chat_request.with_usage(body, request.body) if chat_request.may_ask_for_usage(request.body) else None


class ResponsesEndpoint(DialectEndpoint):
    """OpenAI's Responses."""

    def error_event(self, error: JSON, *, sequence_number: int = -1) -> bytes:
        """Its clients tell events apart by name and `type`. By default the number is none that upstream gives."""
        said = {"type": "error", "sequence_number": sequence_number, **_flat(error)}
        return b"event: error\ndata: " + orjson.dumps(said) + b"\n\n"


class MessagesEndpoint(DialectEndpoint):
    """Anthropic's Messages."""

    def error_event(self, error: JSON) -> bytes:
        return b"event: error\ndata: " + self.error_body(error) + b"\n\n"

    def error_body(self, error: JSON) -> bytes:
        return orjson.dumps({"type": "error", "error": error})


def _flat(error: JSON) -> dict[str, Any]:
    """An error as an event of Responses has it, and under `error` as vLLM's and the other endpoints' have it."""
    return {
        "code": error.get("code") or error.get("type"),
        "message": error.get("message"),
        "param": error.get("param"),
        "error": error,
    }


RESPONSES = ResponsesEndpoint("responses", responses.PATH, responses.conversation_of, ResponseReply)
MESSAGES = MessagesEndpoint("messages", anthropic.PATH, anthropic.conversation_of, lambda _: MessageReply())
COMPLETIONS = CompletionsEndpoint("completions", completions.PATH, completions.conversation_of, CompletionReply)
