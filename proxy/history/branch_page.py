"""Finds one page of a branch without traversing the whole branch."""

from proxy.errors import InvalidRequestError
from proxy.ids import made_at
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.page import Page
from proxy.storage.queries.messages import MessageNode
from proxy.storage.queries.sessions import Session


def find_page(
    connection: Connection, session: Session, leaf_no: int, *, page: Page, is_descending: bool
) -> tuple[list[int], int] | None:
    """The message numbers of a page in ascending order, and the length of the branch.

    None if the stored depths cannot be correct: an import or another program may have written any value.
    """
    leaf = queries.messages.get_node(connection, leaf_no)
    if leaf is None:
        return None
    total = leaf.depth + 1
    start = page.offset
    if page.after is not None:
        start += _position_after(connection, session, leaf, page.after, is_descending=is_descending)
    start, stop = min(start, total), min(start + page.limit, total)
    if is_descending:
        start, stop = total - stop, total - start
    if start == stop:
        return [], total
    bottom = queries.jumps.find_ancestor(connection, leaf_no, depth=stop - 1)
    if bottom is None:
        return None
    path = queries.messages.list_path(connection, bottom.message_no, limit=stop - start)
    return ([step.message_no for step in reversed(path)], total) if len(path) == stop - start else None


def _position_after(
    connection: Connection, session: Session, leaf: MessageNode, message_id: str, *, is_descending: bool
) -> int:
    """The position after a message, in the requested order."""
    message_no = queries.messages.find_message_no(connection, message_id, session_id=session.session_id)
    if message_no is None and made_at(message_id) is not None:
        above = _count_before(connection, session, leaf, message_id)
        return leaf.depth + 1 - above if is_descending else above
    node = None if message_no is None else queries.messages.get_node(connection, message_no)
    found = None if node is None else queries.jumps.find_ancestor(connection, leaf.message_no, depth=node.depth)
    if node is None or found is None or found.message_no != message_no:
        raise InvalidRequestError("There is no such message on this branch.", param="after")
    return leaf.depth - node.depth + 1 if is_descending else node.depth + 1


def _count_before(connection: Connection, session: Session, leaf: MessageNode, message_id: str) -> int:
    """The position of a deleted message: the number of messages stored before it. Ids are ordered by storage time."""
    before = queries.messages.find_message_no_before(connection, message_id, session_no=session.session_no) or 0
    found = queries.jumps.find_ancestor_before(connection, leaf.message_no, before=before + 1)
    return 0 if found is None else found.depth + 1
