"""Messages taken out of a session's tree leave it as `check` wants it."""

from pathlib import Path

import pytest

from proxy.storage import queries, removal
from tests.chats import Chats, said, user


@pytest.mark.parametrize("position", (0, 1, 2, 3))
def test_what_follows_a_deleted_message_stands_one_level_higher(tmp_path: Path, position: int) -> None:
    chats = Chats(tmp_path / "a.db")
    session_id = chats.store([user("a")], said("b"))
    chats.store([user("a"), said("b"), user("c")], said("d"), session=session_id)
    chats.store([user("a"), said("b"), user("other")], said("e"), session=session_id)
    [number] = chats.connection.execute(
        "SELECT message_no FROM messages ORDER BY message_no LIMIT 1 OFFSET ?", (position,)
    ).fetchone()
    with chats.connection.transaction():
        removal.remove_message(chats.connection, number, session_id=session_id)
    assert queries.check.list_inconsistent(chats.connection, "list_misplaced_messages") == []
    chats.connection.close()
