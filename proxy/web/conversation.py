"""`/ui/s/{id}`: a conversation as a chat, with pagination from its end, its branches, and live updates."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from proxy.errors import NotFoundError
from proxy.history import branches
from proxy.storage import queries
from proxy.storage.connection import Connection
from proxy.storage.queries.messages import BranchNode
from proxy.storage.queries.sessions import Session
from proxy.web.live import LiveReplies
from proxy.web.messages import EXTRA_CHARACTERS, growing_message, shown_message, why
from proxy.web.parts import CHARACTERS
from proxy.web.visits import Visit
from proxy.wire import json_text

JSON = dict[str, Any]

# A page of long messages still renders in some milliseconds; older ones follow by a link.
_PAGE = 30
_ABOVE = 5  # messages shown above the linked one
_BRANCHES = 50
_EXCHANGES = 50
# Of one message, to find the search term in it; what follows is not marked.
_SEARCHED_CHARACTERS = 4_000_000
_CONVERSATION = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class View:
    """The requested part of a conversation (message ids), and whether to hide everything but user and model text."""

    branch: str | None = None
    message: str | None = None
    before: str | None = None
    after: str | None = None
    only: bool = False
    query: str | None = None


class Conversation:
    """The conversation pages. Caches the replies in progress that are being viewed."""

    def __init__(self) -> None:
        self._live = LiveReplies()

    async def show(self, visit: Visit) -> Response:
        query = visit.query
        view = View(
            branch=query.get("branch"),
            message=query.get("m"),
            before=query.get("before"),
            after=query.get("after"),
            only=query.get("only") == "1",
            query=query.get("q"),
        )
        id_ = visit.request.path_params["session_id"]
        shown = await visit.services.read(partial(_read, id_=id_, user_id=visit.reach, view=view, live=self._live))
        links = _links(visit, shown, view)
        return await visit.page("conversation.html", **shown, **links, query=view.query, only=view.only)

    async def follow(self, visit: Visit) -> Response:
        """The messages after the last one of a page, for live updates."""
        id_, leaf = visit.request.path_params["session_id"], visit.query.get("leaf")
        read = partial(_read_on, id_=id_, user_id=visit.reach, leaf=leaf, live=self._live)
        shown = await visit.services.read(read)
        return await visit.page("live_messages.html", **shown, live=_live_address(shown))


def _links(visit: Visit, shown: JSON, view: View) -> JSON:
    first, last = shown["messages"][:1], shown["messages"][-1:]
    kept = {"only": "1"} if view.only else {}
    branch = view.branch or view.message
    if branch:
        kept["branch"] = branch
    address = f"/ui/s/{shown['session'].session_id}"
    others = {name: value for name, value in visit.query.items() if name != "only"}
    return {
        "earlier": shown["before_count"] and f"{address}?{urlencode(kept | {'before': first[0]['message_id']})}",
        "later": shown["after_count"] and f"{address}?{urlencode(kept | {'after': last[0]['message_id']})}",
        "only_link": f"{address}?{urlencode(others | {'only': '1'})}",
        "all_link": f"{address}?{urlencode(others)}" if others else address,
        "live": None if shown["after_count"] or view.only else _live_address(shown),
    }


def _live_address(shown: JSON) -> str:
    address = f"/ui/s/{shown['session'].session_id}/live"
    return f"{address}?leaf={shown['leaf_id']}" if shown["leaf_id"] else address


def _read(connection: Connection, *, id_: str, user_id: str | None, view: View, live: LiveReplies) -> JSON:
    session = branches.find_session(connection, id_, user_id=user_id)
    path = branches.get_branch(connection, session, through=view.branch or view.message)
    nodes = [node for node in path if not view.only or node.role in _CONVERSATION]
    start, end = _window(connection, session, nodes, view)
    messages = _messages(connection, session, nodes[start:end], view, is_first=start == 0)
    listed = queries.web.list_branches(
        connection, session.session_id, session_no=session.session_no, limit=_BRANCHES + 1
    )
    return {
        "session": session,
        "messages": messages,
        "before_count": start,
        "after_count": len(nodes) - end,
        "leaf_id": _id_of(connection, path),
        "branches": listed[:_BRANCHES] if len(listed) > 1 else [],
        "more_branches": len(listed) > _BRANCHES,
        **(_end_of(connection, session, path, live) if end == len(nodes) else _NO_END),
        "elsewhere": False,
    }


def _read_on(connection: Connection, *, id_: str, user_id: str | None, leaf: str | None, live: LiveReplies) -> JSON:
    session = branches.find_session(connection, id_, user_id=user_id)
    path = _newest_alone(connection, session, leaf) or branches.get_branch(connection, session, through=leaf)
    known = 0 if leaf is None else _position(connection, session, path, leaf) + 1
    new = path[known : known + _PAGE]
    is_end = known + len(new) == len(path)
    return {
        "session": session,
        "messages": _messages(connection, session, new, View(), is_first=known == 0),
        "leaf_id": _id_of(connection, path[: known + len(new)]),
        **(_end_of(connection, session, path, live) if is_end else _NO_END),
        "elsewhere": session.leaf_no is not None and session.leaf_no not in {node.message_no for node in path},
    }


def _newest_alone(connection: Connection, session: Session, leaf: str | None) -> list[BranchNode]:
    """Fast path for live updates without news: the leaf, without reading the branch."""
    if leaf is None or session.leaf_no is None or queries.web.get_message_id(connection, session.leaf_no) != leaf:
        return []
    node = queries.messages.get_node(connection, session.leaf_no)
    return [] if node is None else [BranchNode(node.message_no, node.role, None)]


def _window(connection: Connection, session: Session, nodes: Sequence[BranchNode], view: View) -> tuple[int, int]:
    """The range of the branch to show: around, before or after a message, or the end."""
    if view.before is not None:
        end = _position(connection, session, nodes, view.before)
        return max(0, end - _PAGE), end
    if view.after is not None:
        start = _position(connection, session, nodes, view.after) + 1
        return start, min(len(nodes), start + _PAGE)
    named = view.message or view.branch
    if named is None:
        return max(0, len(nodes) - _PAGE), len(nodes)
    start = max(0, _position(connection, session, nodes, named, or_end=True) - _ABOVE)
    start = max(0, min(start, len(nodes) - _PAGE))
    return start, min(len(nodes), start + _PAGE)


def _position(
    connection: Connection,
    session: Session,
    nodes: Sequence[BranchNode],
    message_id: str,
    *,
    or_end: bool = False,
) -> int:
    number = queries.messages.find_message_no(connection, message_id, session_id=session.session_id)
    position = next((place for place, node in enumerate(nodes) if node.message_no == number), None)
    if position is None and not or_end:
        raise NotFoundError("There is no such message on this branch.")
    return len(nodes) - 1 if position is None else position


def _id_of(connection: Connection, path: Sequence[BranchNode]) -> str | None:
    return queries.web.get_message_id(connection, path[-1].message_no) if path else None


def _messages(
    connection: Connection, session: Session, nodes: Sequence[BranchNode], view: View, *, is_first: bool
) -> list[JSON]:
    shown = []
    tools: dict[Any, str] = {}  # tool names by call id
    for position, node in enumerate(nodes):
        message = _message(connection, session, node, view)
        if message is None:
            continue
        if message["kind"] == "system" and not (is_first and position == 0):
            message["heading"] += ", changed here"
        message["tool"] = tools.get(message["call_id"]) or message["tool"]
        tools |= {call["id"]: call["name"] for call in message["calls"] if call["id"]}
        if view.only:
            message |= {"reasoning": None, "calls": [], "kept": [], "others": "", "form": None}
        shown.append(message)
    return shown


def _message(connection: Connection, session: Session, node: BranchNode, view: View) -> JSON | None:
    row = queries.web.get_message(connection, node.message_no, characters=CHARACTERS, extra_characters=EXTRA_CHARACTERS)
    if row is None:
        return None
    if view.query and row["message_id"] == view.message and row["length"] > CHARACTERS:
        row["content"] = _around_hit(connection, node.message_no, view.query)
    message = shown_message(row, session_id=session.session_id, query=view.query)
    if node.role in ("system", "developer"):
        return message | {"forks": None}
    forks = queries.web.get_alternatives(connection, node.message_no, session_no=session.session_no)
    return message | {"forks": forks if forks["count"] > 1 else None}


def _around_hit(connection: Connection, message_no: int, query: str) -> str:
    """The part of a long message around a search hit."""
    row = queries.web.get_message(connection, message_no, characters=_SEARCHED_CHARACTERS, extra_characters=0)
    text: str = row["content"] if row else ""
    at = text.casefold().find(query.casefold())
    start = max(0, at - 500) if at > CHARACTERS - 500 else 0
    return ("…" if start else "") + text[start : start + CHARACTERS]


# --- the current end of a branch

_NO_END: JSON = {"growing": [], "ending": None, "every": 3000}


def _end_of(connection: Connection, session: Session, path: Sequence[BranchNode], live: LiveReplies) -> JSON:
    """Replies in progress below the last message, or the outcome of its request if there is no reply."""
    exchanges = queries.web.list_newest_exchanges(connection, session.session_no, limit=_EXCHANGES)
    here = [each for each in exchanges if path and each["leaf_no"] == path[-1].message_no]
    growing = [_growing(connection, each, live) for each in here[:3] if each["status"] == "in_progress"]
    ended = here[0] if here and not growing and path[-1].role != "assistant" else None
    ending = None
    if ended is not None and ended["status"] in ("failed", "incomplete"):
        row = queries.exchanges.get_exchange(connection, ended["exchange_id"])
        error = json_text.stored_object(row.error, "error") if row else {}
        ending = ended | {"words": why(error if isinstance(error, dict) else {})}
    return {"growing": growing, "ending": ending, "every": 1000 if growing else 3000}


def _growing(connection: Connection, exchange: JSON, live: LiveReplies) -> JSON:
    message, model = live.message_of(connection, exchange["exchange_id"], endpoint=exchange["endpoint"])
    return growing_message(
        message,
        message_id=exchange["exchange_id"],
        model=model or exchange["model"],
        created_at=exchange["created_at"],
    )
