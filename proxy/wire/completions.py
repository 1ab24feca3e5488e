"""`/v1/completions`: converts prompts to user messages, and folds replies like chat completions. Pure.

Several prompts become several user messages of one exchange; choices are numbered across prompts, as upstream does.
Token ids are kept as JSON. With `echo`, the prompt in front of the reply is not stored again.
"""

from typing import Any

from proxy.wire import json_text
from proxy.wire.chat_reply import Completion
from proxy.wire.dialect import JSON, Conversation, WireMessage, objects, string
from proxy.wire.dialect_reply import DialectReply
from proxy.wire.endpoint import Choice, Tokens
from proxy.wire.sse import Event

PATH = "/v1/completions"
DIALECT = "completions"


def conversation_of(request: JSON) -> Conversation:
    """Splits a request into messages and parameters."""
    messages = [WireMessage({"role": "user", "content": prompt}) for prompt in prompts_of(request)]
    parameters = {key: value for key, value in request.items() if key not in ("prompt", "metadata")}
    return Conversation(messages, parameters)


def prompts_of(request: JSON) -> list[Any]:
    """The prompts: strings, or lists of token ids."""
    prompt = request.get("prompt")
    if isinstance(prompt, list) and not all(isinstance(each, int) for each in prompt):
        return prompt
    return [] if prompt is None or prompt == [] else [prompt]


class CompletionReply(DialectReply):
    """One reply, folded like a chat completion with `text` as the content."""

    def __init__(self, request: JSON | None = None) -> None:
        super().__init__()
        request = request or {}
        self._chat = Completion()
        self._whole: JSON | None = None
        self._prompts = prompts_of(request) if request.get("echo") is True else []
        choices = request.get("n")
        # The choices of the first prompt are numbered 0 to n-1, those of the second n to 2n-1, and so on.
        self._choices_each = choices if type(choices) is int and choices > 0 else 1

    def take(self, event: JSON) -> None:
        """Folds one chunk."""
        choices = [_renamed(choice, "delta") for choice in objects(event.get("choices"))]
        self.has_token = self.has_token or any(bool(choice.get("delta", {}).get("content")) for choice in choices)
        self._chat.feed(Event(b"", json_text.encoded({**event, "choices": choices})))
        self._after()

    def take_body(self, body: JSON) -> None:
        """Takes a whole reply or an error body."""
        self._whole = body
        choices = [_renamed(choice, "message") for choice in objects(body.get("choices"))]
        said = {**body, "choices": choices} if "choices" in body else body
        self._chat = Completion.from_body(json_text.encoded(said))
        self._after()

    def _after(self) -> None:
        self.usage, self.error = self._chat.usage, self._chat.error

    def is_end(self, event: Event) -> bool:
        return self._chat.is_end(event)

    def is_usage_only(self, event: Event) -> bool:
        return self._chat.is_usage_only(event)

    def without_usage(self, event: Event) -> bytes:
        return self._chat.without_usage(event)

    @property
    def tokens(self) -> Tokens:
        return self._chat.tokens

    @property
    def id(self) -> str | None:
        return self._chat.id

    @property
    def model(self) -> str | None:
        return self._chat.model

    @property
    def created(self) -> int | None:
        return self._chat.created

    @property
    def envelope(self) -> JSON:
        """Every top-level key except choices, usage and error."""
        return self._chat.envelope

    @property
    def choices(self) -> list[Choice]:
        return [
            Choice(each.index, self._without_echo(each), each.finish_reason, each.extra) for each in self._chat.choices
        ]

    @property
    def finish_reason(self) -> str | None:
        return self._chat.finish_reason

    @property
    def is_whole(self) -> bool:
        return self._chat.is_whole

    def to_json_dict(self) -> JSON:
        """The reply in its non-streamed form."""
        if self._whole is not None:
            return self._whole
        choices = [
            {"index": each.index, "text": each.message.get("content") or "", "finish_reason": each.finish_reason}
            | each.extra
            for each in self._chat.choices
        ]
        return self.envelope | {"choices": choices, "usage": self.usage}

    def _without_echo(self, choice: Choice) -> JSON:
        text, place = string(choice.message.get("content")), choice.index // self._choices_each
        prompt = self._prompts[place] if place < len(self._prompts) else None
        message: JSON = {"role": "assistant", "content": text or ""}
        # vLLM repeats the prompt at the beginning of the text when `echo` is set.
        if text and isinstance(prompt, str) and text.startswith(prompt):
            return WireMessage(message | {"content": text[len(prompt) :]}, {DIALECT: {"echo": True}})
        return message


def _renamed(choice: JSON, key: str) -> JSON:
    """The choice in the shape of a chat completion's choice."""
    others = {name: value for name, value in choice.items() if name != "text"}
    text = string(choice.get("text"))
    return others | {key: {} if text is None else {"content": text}}
