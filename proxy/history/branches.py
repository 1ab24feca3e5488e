"""Reads recorded history: a session's branches page by page, a user's sessions.

A branch is traversed by message numbers; only the messages of the page are loaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from proxy.errors import InvalidRequestError, NotFoundError
from proxy.history import deleted_cursors, positions, sent_branch
from proxy.history.positions import Listed, Order, Positions
from proxy.history.sent_branch import BrokenDepthError
from proxy.history.serializers import JSON, message_json, openai_message, session_json, user_json
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.context import placed_messages
from proxy.storage.page import Page
from proxy.storage.queries.exchanges import ExchangeRow
from proxy.storage.queries.messages import BranchNode, Message
from proxy.storage.queries.sessions import Session
from proxy.wire import json_text
from proxy.wire.hash_chain import UNCHAINED_ROLES

Found = TypeVar("Found")
Show = Callable[[Message, dict[str, str]], JSON]

# Size at which a chunk of a streamed branch is sent.
_PIECE_BYTES = 2**20


def find_session(connection: Connection, id_: str, *, user_id: str | None) -> Session:
    """The session with this own or external id. Raises NotFoundError, also for another user's session."""
    session_id = queries.sessions.find_session_id(connection, id_=id_, user_id=user_id)
    session = None if session_id is None else queries.sessions.get_session(connection, session_id, user_id=user_id)
    if session is None:
        raise NotFoundError("No such session.")
    return session


def get_session(connection: Connection, id_: str, *, user_id: str | None) -> JSON:
    """The session as the routes return it."""
    return session_json(find_session(connection, id_, user_id=user_id))


def list_sessions(connection: Connection, *, user_id: str, page: Page, active_only: bool) -> JSON:
    """One page of a user's sessions, most recently active first."""
    cursor = None if page.after is None else _cursor_of(connection, page.after, user_id=user_id)
    rows = queries.sessions.list_sessions(
        connection, user_id=user_id, page=page, active_only=active_only, cursor=cursor
    )
    user = queries.users.get_user(connection, user_id)
    total = 0 if user is None else user.active_session_count if active_only else user.session_count
    return {"sessions": [session_json(row) for row in rows], "total": total}


def _cursor_of(connection: Connection, id_: str, *, user_id: str) -> tuple[str, str]:
    """A session's position in the list, even if it was deleted. Raises InvalidRequestError."""
    session_id = queries.sessions.find_session_id(connection, id_=id_, user_id=user_id)
    session = None if session_id is None else queries.sessions.get_session(connection, session_id, user_id=user_id)
    if session is not None:
        return session.updated_at, session.session_id
    place = deleted_cursors.place_of(user_id, id_)
    if place is None:
        raise InvalidRequestError("There is no such session to list after.", param="after")
    return place


@dataclass(frozen=True, slots=True)
class OpenPage:
    """A page of a branch before its messages are loaded: their numbers in the requested order, for `read_piece`."""

    session: JSON
    numbers: list[int]
    total: int
    show: Show


def open_messages(
    connection: Connection,
    id_: str,
    *,
    user_id: str | None,
    page: Page,
    order: Order = "asc",
    through: str | None = None,
    show: Show = message_json,
) -> OpenPage:
    """One page of a branch, each message with its metadata."""
    session = find_session(connection, id_, user_id=user_id)
    work = partial(_open_page, connection, session, page=page, order=order, show=show)
    return with_stored(connection, session, through, work)


def open_openai_messages(
    connection: Connection,
    id_: str,
    *,
    user_id: str | None,
    page: Page,
    order: Order = "asc",
    through: str | None = None,
) -> OpenPage:
    """One page of a branch as OpenAI messages that can be sent to upstream."""
    session = find_session(connection, id_, user_id=user_id)
    work = partial(_open_page, connection, session, page=page, order=order, show=openai_message)
    return with_sent(connection, session, through, work)


def with_sent(
    connection: Connection, session: Session, through: str | None, work: Callable[[Positions], Found]
) -> Found:
    """Calls `work` with the branch in the order of its last request, and with that request's exchange."""

    def traverse(path: Sequence[BranchNode]) -> Positions:
        return Listed(*as_sent_by(connection, path))

    find = partial(sent_branch.find_sent, connection, session)
    return _with_branch(connection, session, through, work, find=find, traverse=traverse)


def with_stored(
    connection: Connection, session: Session, through: str | None, work: Callable[[Positions], Found]
) -> Found:
    """Calls `work` with the branch in the order of storage."""

    def traverse(path: Sequence[BranchNode]) -> Positions:
        return Listed([step.message_no for step in path])

    find = partial(sent_branch.find_branch, connection)
    return _with_branch(connection, session, through, work, find=find, traverse=traverse)


def _with_branch(
    connection: Connection,
    session: Session,
    through: str | None,
    work: Callable[[Positions], Found],
    *,
    find: Callable[[int], Positions | None],
    traverse: Callable[[Sequence[BranchNode]], Positions],
) -> Found:
    """Calls `work` with the branch of the leaf. `find` reads it by position; if that is impossible, it is traversed."""
    leaf_no = _find_leaf(connection, session, through)
    try:
        found = None if leaf_no is None else find(leaf_no)
        if found is not None:
            return work(found)
    except BrokenDepthError:
        pass
    return work(traverse(_path_to(connection, leaf_no)))


def get_branch(connection: Connection, session: Session, *, through: str | None = None) -> list[BranchNode]:
    """The session's newest branch, or the newest one through a message, from root to leaf."""
    return _path_to(connection, _find_leaf(connection, session, through))


def _find_leaf(connection: Connection, session: Session, through: str | None) -> int | None:
    if through is None:
        return session.leaf_no
    message_no = queries.messages.find_message_no(connection, through, session_id=session.session_id)
    if message_no is None:
        raise InvalidRequestError("There is no such message in this session.", param="branch")
    if _is_on_only_branch(connection, session, message_no):
        return session.leaf_no
    return queries.messages.newest_leaf_below(connection, message_no, session_no=session.session_no)


def _is_on_only_branch(connection: Connection, session: Session, message_no: int) -> bool:
    """Whether the session has a single branch; the message is then on it."""
    branch = None if session.leaf_no is None else sent_branch.find_branch(connection, session.leaf_no)
    return branch is not None and branch.length == session.message_count and bool(branch.places_of(message_no))


def _path_to(connection: Connection, leaf_no: int | None) -> list[BranchNode]:
    return [] if leaf_no is None else queries.messages.list_path(connection, leaf_no)[::-1]


def as_sent(connection: Connection, branch: Sequence[BranchNode]) -> list[int]:
    """The message numbers of a branch in the order of its last request, with that request's system messages."""
    return as_sent_by(connection, branch)[0]


def as_sent_by(connection: Connection, branch: Sequence[BranchNode]) -> tuple[list[int], ExchangeRow | None]:
    """Like `as_sent`, and the exchange of that request."""
    position, exchange = _last_exchange(connection, branch)
    if exchange is None:
        return [step.message_no for step in branch], None
    end = 1 + next((i for i, step in enumerate(branch) if step.message_no == exchange.leaf_no), position)
    return as_requested(branch[:end], exchange) + [step.message_no for step in branch[end:]], exchange


def as_far_as_sent(path: Sequence[BranchNode], exchange: ExchangeRow) -> list[BranchNode]:
    """The part of a request's path that the request contained: a client may drop older turns."""
    chained = [step for step in path if step.role not in UNCHAINED_ROLES]
    return chained if exchange.linked_count is None else chained[len(chained) - exchange.linked_count :]


def as_requested(path: Sequence[BranchNode], exchange: ExchangeRow) -> list[int]:
    """The message numbers of an exchange's request, with its system messages at their original positions."""
    numbers = [step.message_no for step in path if step.role not in UNCHAINED_ROLES]
    for placed, (to_come, message_no) in enumerate(placed_messages(exchange.context)):
        # `placed` earlier system messages are already in the list; None means the very beginning.
        index = placed if to_come is None else max(len(numbers) - to_come, placed)
        numbers.insert(index, message_no)
    return numbers


def _last_exchange(connection: Connection, branch: Sequence[BranchNode]) -> tuple[int, ExchangeRow | None]:
    """The last exchange on a branch, and the index of its last message."""
    for position in range(len(branch) - 1, -1, -1):
        exchange_no = branch[position].exchange_no
        exchange_id = None if exchange_no is None else queries.exchanges.find_exchange_id(connection, exchange_no)
        exchange = None if exchange_id is None else queries.exchanges.get_exchange(connection, exchange_id)
        if exchange is not None:
            return position, exchange
    return 0, None


def _open_page(
    connection: Connection, session: Session, branch: Positions, *, page: Page, order: Order, show: Show
) -> OpenPage:
    start, stop = positions.page_of(connection, session, branch, page=page, order=order)
    shown = list(branch.read(start, stop))
    return OpenPage(session_json(session), shown[::-1] if order == "desc" else shown, branch.total, show)


def get_message(connection: Connection, message_no: int, *, show: Show = message_json) -> JSON:
    """A message that is known to exist."""
    row = queries.messages.get_message(connection, message_no)
    assert row is not None
    return show(row, _blobs(connection, row))


def _blobs(connection: Connection, row: Message) -> dict[str, str]:
    return queries.messages.list_message_blobs(connection, row.message_no) if row.content_form == "json" else {}


# --- whole branches and histories, chunk by chunk


def open_branch(connection: Connection, id_: str, *, user_id: str | None) -> tuple[JSON, list[int]]:
    """A session and the message numbers of its newest branch, for `read_piece`."""
    session = find_session(connection, id_, user_id=user_id)
    return session_json(session), [step.message_no for step in get_branch(connection, session)]


def read_piece(
    connection: Connection, numbers: Sequence[int], *, start: int, show: Show = message_json
) -> tuple[list[str], int]:
    """JSON texts of the next messages, about a megabyte, and the next start index. Deleted messages are skipped."""
    texts: list[str] = []
    size, position = 0, start
    while position < len(numbers) and size < _PIECE_BYTES:
        row = queries.messages.get_message(connection, numbers[position])
        if row is not None:
            texts.append(json_text.dumps(show(row, _blobs(connection, row))))
            size += len(texts[-1])
        position += 1
    return texts, position


def open_history(
    connection: Connection, *, user_id: str, page: Page, since: str | None, until: str | None
) -> tuple[JSON, list[str], int]:
    """A user, the ids of one page of its sessions (most recently active first), and the total number of sessions."""
    user = queries.users.get_user(connection, user_id)
    if user is None:
        raise NotFoundError("No such user.")
    session_ids = queries.sessions.list_session_ids(connection, user_id=user_id, page=page, since=since, until=until)
    total = user.session_count
    if since is not None or until is not None:
        total = queries.sessions.count_sessions_between(connection, user_id=user_id, since=since, until=until)
    return user_json(user), session_ids, total
