"""Stores the replies of an exchange that has ended, inside the writer's transaction."""

from collections.abc import Mapping
from typing import Any

from proxy.storage import message_tree, queries
from proxy.storage.connection import Connection
from proxy.storage.exchange import Outcome
from proxy.storage.write_batch import Columns, SessionDelta, WriteBatch
from proxy.wire import hash_chain, json_text
from proxy.wire.dialect import item_ids_of
from proxy.wire.endpoint import Choice
from proxy.wire.message import is_message

NONE_STAYED: Mapping[bytes, int] = {}


def store_reply(
    rows: WriteBatch,
    columns: Columns,
    place: message_tree.InsertPosition,
    outcome: Outcome,
    delta: SessionDelta,
    *,
    may_be_there: bool,
    stayed: Mapping[bytes, int] = NONE_STAYED,
) -> None:
    """Stores each non-empty choice as a child of the request's last message; the first choice becomes the newest leaf.

    `may_be_there`: a later request may already have stored this reply as part of its history. `stayed`: replies of an
    earlier, assumed end that are still stored, by chain hash.
    """
    first_no, left = None, dict(stayed)
    tokens = columns["completion_tokens"] or 0
    for choice in outcome.reply.choices if outcome.reply else ():
        if choice.finish_reason is None and not choice.says_something:
            continue
        is_whole = outcome.status == "completed" or choice.finish_reason is not None
        message = _message(choice)
        told = {
            "chain_hash": hash_chain.chain_hash(place.above, message),
            "exchange_no": columns["exchange_no"],
            "tokens": tokens,
            "model": columns["model"],
            "choice": _choice_json(choice),
            "status": "completed" if is_whole else "incomplete",
        }
        tokens = 0  # usage counts all choices together
        stayed_no = left.pop(told["chain_hash"], None)
        if stayed_no is not None:
            delta.tokens -= _tokens_of(rows.about(place.session_id), stayed_no)
            told["message_no"] = stayed_no
        if (may_be_there or stayed_no is not None) and message_tree.adopt(
            rows.about(place.session_id), place, message, delta, **told
        ):
            continue
        number = message_tree.insert(rows, place, message, delta, **told)
        rows.add_response_items(number, item_ids_of(message))
        first_no = first_no or number
    delta.leaf_no = first_no or delta.leaf_no


def _tokens_of(connection: Connection, message_no: int) -> int:
    message = queries.messages.get_message(connection, message_no)
    assert message is not None
    return message.tokens


def _message(choice: Choice) -> dict[str, Any]:
    """The choice's message without empty `tool_calls`: vLLM always sends an empty list, which OpenAI rejects as
    input."""
    message = choice.message
    if message.get("tool_calls") == []:
        message = {key: value for key, value in message.items() if key != "tool_calls"}
    return message if is_message(message) else message | {"role": "assistant"}


def _choice_json(choice: Choice) -> str:
    said = {"index": choice.index or None, "finish_reason": choice.finish_reason, **choice.extra}
    return json_text.dumps({key: value for key, value in said.items() if value is not None})
