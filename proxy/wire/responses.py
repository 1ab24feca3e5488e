"""`/v1/responses` (OpenAI): parses a request into chat messages and parameters. Pure."""

from proxy.wire.dialect import JSON, Conversation, WireMessage
from proxy.wire.responses_items import messages_of

PATH = "/v1/responses"

# Keys that name where the conversation continues. They change every turn, so they belong to the exchange.
STATE_KEYS = ("previous_response_id", "conversation")


def conversation_of(request: JSON) -> Conversation:
    """Splits a request: `instructions` become a system message, `input` the messages after it."""
    messages: list[WireMessage] = []
    wire: JSON = {key: request[key] for key in STATE_KEYS if request.get(key) is not None}
    instructions = request.get("instructions")
    if isinstance(instructions, str):
        messages.append(WireMessage({"role": "system", "content": instructions}))
        wire["instructions"] = True
    messages += messages_of(request.get("input"))
    left_out = {"input", "metadata", *STATE_KEYS} | ({"instructions"} if isinstance(instructions, str) else set())
    parameters = {key: value for key, value in request.items() if key not in left_out}
    return Conversation(messages, parameters, wire or None)
