"""Responses state: which message holds an item."""

from collections.abc import Iterable

from proxy.storage.connection import Connection


def insert_response_items(connection: Connection, item_ids: Iterable[str], *, message_no: int) -> None:
    """Remember that a message holds these items."""
    connection.store("insert_response_item", [{"item_id": item_id, "message_no": message_no} for item_id in item_ids])


def find_response_item(connection: Connection, item_id: str, *, user_id: str) -> int | None:
    """The newest message of a user that holds an item with upstream's id."""
    found: int | None = connection.value("find_response_item", {"item_id": item_id, "user_id": user_id})
    return found


def find_message_of_user(connection: Connection, message_id: str, *, user_id: str) -> int | None:
    """The number of a user's message."""
    found: int | None = connection.value("find_message_of_user", {"message_id": message_id, "user_id": user_id})
    return found
