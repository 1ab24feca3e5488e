"""Finds where a request continues in its session's tree.

A session may contain several conversations: an agent, its sub-agents, a title generator. A request is matched by its
hash chain from the root; without a match it starts a new conversation. It may also be a single turn from a client that
never resends its history, so it is displayed below the newest message until it turns out to be a separate conversation:
a later request resends it from the root, another request continues the messages above it without it, or its system
message is clearly different. It has its own hash chain from the start, so separating it only changes one parent link.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from proxy.storage import message_tree, queries
from proxy.storage.connection import Connection
from proxy.storage.context import placed_messages
from proxy.storage.exchange import Exchange
from proxy.storage.message_tree import InsertPosition
from proxy.storage.queries.messages import MessageNode
from proxy.storage.queries.sessions import Session
from proxy.wire import hash_chain, system_messages
from proxy.wire.hash_chain import UNCHAINED_ROLES, has_reply
from proxy.wire.message import readable

# Clients that drop old turns: how many messages from the end of a branch are searched, and how many branches.
_WINDOW = 256
_BRANCHES = 8
# Maximum length of a branch of single turns that can be recognised when they are resent as one conversation.
_WHOLE = 8192
# Limits per request on moved conversations and on messages moved with each, because other chats wait for the writer.
# Anything beyond the limit stays readable where it is.
_DETACHED_MAX = 64
_MOVED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class _Match:
    """A stored message, and how many of the request's chained messages it completes."""

    message_no: int
    count: int
    has_detached: bool = False  # a conversation of the session is displayed below another
    place: InsertPosition | None = None  # the position below it, if it is known without another query


def _longer(one: _Match | None, other: _Match | None) -> _Match | None:
    if one is None or (other is not None and other.count >= one.count):
        return other
    return one


def find_place(connection: Connection, session: Session, exchange: Exchange) -> tuple[InsertPosition, int]:
    """The insert position of a request, and how many of its chained messages are already stored above it."""
    if session.leaf_no is None:
        return message_tree.top(session), 0
    chained = exchange.chained
    if not chained:
        return message_tree.end_of(connection, session), 0
    match = resent = _find_resent(connection, session, exchange)
    if has_reply(chained[resent.count if resent else 0 :]):
        match = _longer(_find_shown(connection, session, exchange), resent)
    if match is not None:
        if match.has_detached and has_reply(chained[: match.count]):
            _separate_children(connection, session, set(exchange.chain[: match.count]))
        return match.place or message_tree.below(connection, session, match.message_no), match.count
    # A request that contains a reply resends history, so it is not a single turn.
    leaf_no = None if has_reply(chained) else _branch_to_follow(connection, session, exchange)
    if leaf_no is None:
        return message_tree.beginning(session), 0
    return message_tree.beginning_below(connection, session, leaf_no), 0


# --- history resent from its root


def _find_resent(connection: Connection, session: Session, exchange: Exchange) -> _Match | None:
    """The longest prefix of the request that is stored as a conversation from its root."""
    chained, hashes = exchange.chained, exchange.chain
    hit = queries.tree.find_prefix(connection, hashes[::-1], session_no=session.session_no)
    count = len(hashes) - hit.position if hit else 0
    if has_reply(chained[count:]):
        old = _find_as_schema_8(connection, session, exchange)
        if old is not None and old.count > count:
            return old
    if hit is None or not _is_resent(connection, session, hit, chained[:count]):
        return None
    # A conversation that is not the session's first one may just have been moved.
    place = message_tree.below_prefix(session, hit, hashes[count - 1]) if hit.root_no is None else None
    return _Match(hit.message_no, count, has_detached=hit.has_detached, place=place)


def _is_resent(
    connection: Connection, session: Session, hit: queries.tree.Prefix, matched: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether the request continues this conversation. If it is displayed below another, separates it.

    A single turn with the same words is no match unless the stored one still waits for its reply.
    """
    root = None if hit.root_no is None else queries.messages.get_node(connection, hit.root_no)
    if root is None or root.parent_no is None:
        return True
    if not has_reply(matched):
        return not queries.tree.has_children(connection, hit.message_no, session_no=session.session_no)
    separate(connection, session, root)
    return True


def _separate_children(connection: Connection, session: Session, resent: set[bytes]) -> None:
    """Separates conversations displayed below a message of a conversation that continues without them."""
    for message_no in queries.tree.list_detached(connection, session_no=session.session_no, limit=_DETACHED_MAX):
        above = queries.messages.list_ancestors(connection, message_no, session_id=session.session_id, limit=_BRANCHES)
        chained = next((node for node in above[1:] if not _is_system_message(node)), None)
        if chained is not None and chained.chain_hash in resent:
            separate(connection, session, above[0])


def separate(connection: Connection, session: Session, root: MessageNode) -> None:
    """Makes a conversation that is displayed below another independent, unless too many messages would change."""
    numbers = queries.tree.list_subtree(
        connection, root.message_no, session_no=session.session_no, limit=_MOVED_MAX + 1
    )
    if len(numbers) <= _MOVED_MAX:
        queries.tree.detach_from_parent(connection, root.message_no)
        queries.jumps.delete_jumps(connection, numbers)
        queries.tree.raise_messages(connection, numbers, levels=root.depth)


def _find_as_schema_8(connection: Connection, session: Session, exchange: Exchange) -> _Match | None:
    """Looks up the longest prefix by schema 8 hashes; rewrites the hashes of a match to today's."""
    hashes = hash_chain.exact_chain(exchange.user_id, exchange.chained)
    hit = hashes and queries.tree.find_prefix(connection, hashes[::-1], session_no=session.session_no)
    if not hashes or not hit:
        return None
    count = len(hashes) - hit.position
    path = _path_to(connection, session, hit.message_no, limit=_WHOLE)
    chained = [node for node in path if not _is_system_message(node)][-count:]
    if len(chained) == count:
        _rechain(connection, chained, exchange.chain[:count], root_no=hit.root_no)
    return _Match(hit.message_no, count)


# --- history resent as displayed


def _find_shown(connection: Connection, session: Session, exchange: Exchange) -> _Match | None:
    """The part of a branch that the request starts with, if it contains a reply.

    Clients that drop old turns resend such a part; a client that has read a session of single turns resends all of it.
    """
    is_joined = queries.tree.has_detached(connection, session_no=session.session_no)
    is_old = hash_chain.exact_chain(exchange.user_id, exchange.chained) is not None
    for leaf_no in _newest_ends(connection, session):
        limit = _WHOLE if leaf_no == session.leaf_no and (is_joined or is_old) else _WINDOW
        path = _path_to(connection, session, leaf_no, limit=limit)
        if (match := _longest_run(connection, session, path, exchange)) is not None:
            return match
    return None


def _longest_run(
    connection: Connection, session: Session, path: Sequence[MessageNode], exchange: Exchange
) -> _Match | None:
    """The newest part of a path (root first) that the request starts with and that contains a reply."""
    nodes = [node for node in path if not _is_system_message(node)]
    above = _hashes_above(nodes, exchange.user_id, is_whole=path[0].parent_no is None)
    for start in range(len(nodes) - 1, -1, -1):
        length = _run_length(nodes[start:], above[start:], exchange.chained)
        if not has_reply(exchange.chained[:length]):
            continue
        end = nodes[start + length - 1]
        if start == 0 and above[0] is not None:
            run = path[: path.index(end) + 1]
            _rechain(connection, run, exchange.chain, root_no=run[0].root_no)
        return _Match(end.message_no, length)
    return None


def _hashes_above(nodes: Sequence[MessageNode], user_id: str, *, is_whole: bool) -> list[bytes | None]:
    """The chain hash above each of a path's chained messages; None for the first one if the path is truncated."""
    root = hash_chain.root_hash(user_id)
    above: list[bytes | None] = [root if is_whole else None]
    for parent, node in pairwise(nodes):
        above.append(parent.chain_hash if parent.root_no == node.root_no else root)
    return above


def _run_length(
    nodes: Sequence[MessageNode], above: Sequence[bytes | None], messages: Sequence[Mapping[str, Any]]
) -> int:
    length = 0
    for node, hash_above, message in zip(nodes, above, messages, strict=False):
        if hash_above is None or node.chain_hash not in _hashes_of(hash_above, message):
            break
        length += 1
    return length


def _hashes_of(above: bytes, message: Mapping[str, Any]) -> Iterable[bytes]:
    yield hash_chain.chain_hash(above, message)
    yield hash_chain.exact_chain_hash(above, message)


def _rechain(
    connection: Connection, path: Sequence[MessageNode], hashes: Sequence[bytes], *, root_no: int | None
) -> None:
    """Turns a path into one conversation: rewrites its hashes as if it had been sent as one."""
    numbered = iter(hashes)
    changed = []
    for node in path:
        chain_hash = node.chain_hash if _is_system_message(node) else next(numbered)
        if (node.chain_hash, node.root_no) != (chain_hash, root_no):
            changed.append({"message_no": node.message_no, "chain_hash": chain_hash, "root_no": root_no})
    queries.tree.rechain_messages(connection, changed)


def _path_to(connection: Connection, session: Session, message_no: int, *, limit: int) -> list[MessageNode]:
    """A message and its ancestors, root first."""
    return queries.messages.list_ancestors(connection, message_no, session_id=session.session_id, limit=limit)[::-1]


# --- single turns


def _branch_to_follow(connection: Connection, session: Session, exchange: Exchange) -> int | None:
    """The leaf of the newest branch with a matching system message; None if there is none."""
    asked = "\n".join(readable(message.get("content")) for message in system_messages.leading(exchange.messages))
    assert session.leaf_no is not None
    ends = _newest_ends(connection, session)
    if not asked:
        return _branch_without_system_message(connection, ends)
    if queries.tree.find_context(connection, session.leaf_no) is None:
        return session.leaf_no  # posted manually, so its system message is unknown
    for texts_of in (_sent_with, _shown_with):
        for message_no in ends:
            if any(system_messages.are_alike(asked, text) for text in texts_of(connection, session, message_no)):
                return message_no
    return None


def _branch_without_system_message(connection: Connection, ends: Sequence[int]) -> int:
    """The leaf of the newest branch sent without a system message, else of the session's first conversation."""
    of_first = None
    for message_no in ends:
        context = queries.tree.find_context(connection, message_no)
        if context is None or context.text is None:
            return message_no
        node = queries.messages.get_node(connection, message_no)
        if of_first is None and node is not None and node.root_no is None:
            of_first = message_no
    return ends[0] if of_first is None else of_first


def _sent_with(connection: Connection, session: Session, message_no: int) -> list[str]:
    """The system messages of the last request on a branch."""
    context = queries.tree.find_context(connection, message_no)
    numbers = [number for to_come, number in placed_messages(context and context.text) if to_come is None]
    return ["\n".join(queries.tree.get_text(connection, number) for number in numbers)] if numbers else []


def _shown_with(connection: Connection, session: Session, message_no: int) -> list[str]:
    """The system messages displayed on a branch."""
    shown = [node for node in _path_to(connection, session, message_no, limit=_WINDOW) if _is_system_message(node)]
    return [queries.tree.get_text(connection, node.message_no) for node in shown]


def _newest_ends(connection: Connection, session: Session) -> list[int]:
    """The leaves of the newest conversations; the session's newest leaf comes first."""
    assert session.leaf_no is not None
    ends = queries.tree.list_newest_ends(connection, session.session_id, among=_WINDOW, limit=_BRANCHES)
    return list(dict.fromkeys((session.leaf_no, *ends)))


def _is_system_message(node: MessageNode) -> bool:
    """Whether this is a system message, which is not chained."""
    return node.role in UNCHAINED_ROLES
