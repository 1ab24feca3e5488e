"""The queries of Responses state: which message holds an item."""

import sqlite3
from collections.abc import Iterable

from proxy.storage.queries import QUERIES


def insert_response_items(connection: sqlite3.Connection, item_ids: Iterable[str], *, message_no: int) -> None:
    """Remember that a message holds these items."""
    for item_id in item_ids:
        connection.execute(QUERIES["insert_response_item"], {"item_id": item_id, "message_no": message_no})


def find_response_item(connection: sqlite3.Connection, item_id: str, *, user_id: str) -> int | None:
    """The newest message of a user that holds an item with upstream's id."""
    row = connection.execute(QUERIES["find_response_item"], {"item_id": item_id, "user_id": user_id}).fetchone()
    return None if row is None else row[0]


def find_message_of_user(connection: sqlite3.Connection, message_id: str, *, user_id: str) -> int | None:
    """The number of a user's message."""
    row = connection.execute(QUERIES["find_message_of_user"], {"message_id": message_id, "user_id": user_id}).fetchone()
    return None if row is None else row[0]
