"""The `/v1/chat/completions` endpoint: parses requests, and formats its errors. `chat_reply.py` folds the replies."""

import orjson

from proxy.wire import chat_request
from proxy.wire.chat_reply import Completion
from proxy.wire.endpoint import JSON, Request
from proxy.wire.message import is_message


class ChatRequest:
    """A chat completion request."""

    def __init__(self, body: JSON) -> None:
        self.body = body
        self._messages: list[JSON] | None = None

    @property
    def messages(self) -> list[JSON]:
        """All messages, or [] if any of them cannot be stored."""
        if self._messages is None:
            messages = self.body.get("messages")
            self._messages = messages if isinstance(messages, list) and all(map(is_message, messages)) else []
        return self._messages

    @property
    def parameters(self) -> JSON:
        """The other keys; includes `messages` if they cannot be stored as messages."""
        apart = ("messages", "metadata") if self.messages else ("metadata",)
        return {key: value for key, value in self.body.items() if key not in apart}

    @property
    def wire(self) -> None:
        """None: a chat request has nothing that belongs to the exchange alone."""
        return None

    @property
    def wants_stream(self) -> bool:
        return self.body.get("stream") is True


class ChatEndpoint:
    """OpenAI's chat completions, with vLLM's extensions."""

    name = "chat"
    path = "/v1/chat/completions"

    def parse(self, body: bytes) -> ChatRequest | None:
        """Parses a request; None if the body is not a JSON object."""
        value = chat_request.parse(body)
        return None if value is None else ChatRequest(value)

    def request(self, body: JSON) -> ChatRequest:
        return ChatRequest(body)

    def reply(self, request: Request | None = None) -> Completion:
        return Completion()

    def with_usage(self, body: bytes, request: Request) -> bytes | None:
        """Adds `stream_options.include_usage` if the caller has not set it."""
        return chat_request.with_usage(body, request.body) if chat_request.may_ask_for_usage(request.body) else None

    def error_event(self, error: JSON) -> bytes:
        # vLLM's form of an error within a stream. OpenAI's SDKs raise on a data object with an `error`.
        return b"data: " + self.error_body(error) + b"\n\n"

    def error_body(self, error: JSON) -> bytes:
        return orjson.dumps({"error": error})


CHAT = ChatEndpoint()
