"""Queries of Responses state: which message contains an item."""

from collections.abc import Iterable

from proxy.storage.connection import Connection


def insert_response_items(connection: Connection, item_ids: Iterable[str], *, message_no: int) -> None:
    """Links items to the message that contains them."""
    connection.store("insert_response_item", [{"item_id": item_id, "message_no": message_no} for item_id in item_ids])


def find_response_item(connection: Connection, item_id: str, *, user_id: str) -> int | None:
    """The user's newest message that contains an item with upstream's id."""
    found: int | None = connection.value("find_response_item", {"item_id": item_id, "user_id": user_id})
    return found


def find_message_of_user(connection: Connection, message_id: str, *, user_id: str) -> int | None:
    """The row number of a user's message."""
    found: int | None = connection.value("find_message_of_user", {"message_id": message_id, "user_id": user_id})
    return found
