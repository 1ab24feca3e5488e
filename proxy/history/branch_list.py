"""Lists a session's branches: the leaves of its tree, each with the conversation it belongs to.

No branch is traversed: a message knows the first message of its conversation, and a conversation knows the message it
is displayed below.
"""

from dataclasses import dataclass, field

from proxy.history.branches import find_session
from proxy.history.serializers import JSON
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.page import Page
from proxy.storage.queries.sessions import Session
from proxy.storage.queries.tree import Beginning, Leaf
from proxy.wire.message import DEFAULT_TITLE, title_of


def list_branches(connection: Connection, id_: str, *, user_id: str | None, page: Page) -> JSON:
    """One page of a session's branches, newest first. Raises NotFoundError."""
    session = find_session(connection, id_, user_id=user_id)
    total = queries.tree.count_leaves(connection, session_no=session.session_no)
    # Do not search all messages for leaves if no more are left.
    limit = max(0, min(page.limit, total - page.offset))
    leaves = queries.tree.page_leaves(connection, session.session_id, limit=limit, offset=page.offset) if limit else []
    roots = _Roots(connection, session)
    return {"branches": [roots.branch(leaf) for leaf in leaves], "total": total}


@dataclass(slots=True)
class _Roots:
    """The conversations of a session; each is looked up once."""

    connection: Connection
    session: Session
    first_no: int | None = None
    beginnings: dict[int, Beginning | None] = field(default_factory=dict)

    def branch(self, leaf: Leaf) -> JSON:
        """A branch as the routes return it."""
        root = self._shown_root(leaf.root_no)
        return {
            "message_id": leaf.message_id,
            "root_message_id": leaf.message_id if root is None else root.message_id,
            "title": DEFAULT_TITLE if root is None else self._title(root),
            "message_count": leaf.depth + 1,
            "updated_at": leaf.created_at,
        }

    def _shown_root(self, root_no: int | None) -> Beginning | None:
        """The first message of the branch, following conversations displayed below others up to the top."""
        root = self._beginning(root_no)
        while root is not None and root.parent_no is not None:
            above = queries.messages.get_node(self.connection, root.parent_no)
            root = None if above is None else self._beginning(above.root_no)
        return root

    def _beginning(self, root_no: int | None) -> Beginning | None:
        number = self._first_no() if root_no is None else root_no
        if number is None:
            return None
        if number not in self.beginnings:
            self.beginnings[number] = queries.tree.get_beginning(
                self.connection, number, session_no=self.session.session_no
            )
        return self.beginnings[number]

    def _first_no(self) -> int | None:
        if self.first_no is None:
            self.first_no = queries.tree.find_first_root(self.connection, session_no=self.session.session_no)
        return self.first_no

    def _title(self, root: Beginning) -> str:
        if root.question_no is None:
            return DEFAULT_TITLE
        return title_of([{"role": "user", "content": queries.tree.get_text(self.connection, root.question_no)}])
