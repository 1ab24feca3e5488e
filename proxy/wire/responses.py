"""`/v1/responses`: a request as messages of the chat shape and parameters. Pure."""

from proxy.wire.dialect import JSON, Conversation, WireMessage
from proxy.wire.responses_items import messages_of

PATH = "/v1/responses"

# Where a request goes on; it differs with every turn, and is the exchange's.
STATE_KEYS = ("previous_response_id", "conversation")


def conversation_of(request: JSON) -> Conversation:
    """What a request says: its instructions as a system message, then its input."""
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
