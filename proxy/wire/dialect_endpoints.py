"""The Responses, Messages and Completions endpoints: how each parses requests, folds replies and formats errors."""

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
        # Recording must not reject a request: anything that cannot be stored as messages is kept in `parameters`.
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
    """An endpoint assembled from the functions of its dialect."""

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
        """Parses a request; None if the body is not a JSON object."""
        value = chat_request.parse(body)
        return None if value is None else self.request(value)

    def request(self, body: JSON) -> DialectRequest:
        return DialectRequest(body, self._conversation_of(body))

    def reply(self, request: Request | None = None) -> Reply:
        return self._reply(None if request is None else request.body)

    def with_usage(self, body: bytes, request: Request) -> bytes | None:
        """None: these streams always include usage."""
        return None

    def error_event(self, error: JSON) -> bytes:
        return b"data: " + self.error_body(error) + b"\n\n"

    def error_body(self, error: JSON) -> bytes:
        return orjson.dumps({"error": error})


class CompletionsEndpoint(DialectEndpoint):
    """OpenAI's completions; like chat, its streams include usage only on request."""

    def with_usage(self, body: bytes, request: Request) -> bytes | None:
        return chat_request.with_usage(body, request.body) if chat_request.may_ask_for_usage(request.body) else None


class ResponsesEndpoint(DialectEndpoint):
    """OpenAI's Responses."""

    def error_event(self, error: JSON, *, sequence_number: int = -1) -> bytes:
        """Clients distinguish events by name and `type`.

        The default sequence number is one that upstream never sends.
        """
        said = {"type": "error", "sequence_number": sequence_number, **_flat(error)}
        return b"event: error\ndata: " + orjson.dumps(said) + b"\n\n"


class MessagesEndpoint(DialectEndpoint):
    """Anthropic's Messages."""

    def error_event(self, error: JSON) -> bytes:
        return b"event: error\ndata: " + self.error_body(error) + b"\n\n"

    def error_body(self, error: JSON) -> bytes:
        return orjson.dumps({"type": "error", "error": error})


def _flat(error: JSON) -> dict[str, Any]:
    """An error in the shape of a Responses event, with a copy under `error` as vLLM and the other endpoints send it."""
    return {
        "code": error.get("code") or error.get("type"),
        "message": error.get("message"),
        "param": error.get("param"),
        "error": error,
    }


RESPONSES = ResponsesEndpoint("responses", responses.PATH, responses.conversation_of, ResponseReply)
MESSAGES = MessagesEndpoint("messages", anthropic.PATH, anthropic.conversation_of, lambda _: MessageReply())
COMPLETIONS = CompletionsEndpoint("completions", completions.PATH, completions.conversation_of, CompletionReply)
