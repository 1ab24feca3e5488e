"""Keeps the short ways up a long branch. Inside the writer's transaction.

They are made with the messages; what moves a message forgets them. Where one is missing, the way up is longer, and as
right.
"""

from proxy.storage import queries
from proxy.storage.connection import Connection

# As many messages store one way, and looking for its end costs each of them about one step.
_NEAR = 64
_FAR = 4096


def wants_jump(depth: int) -> bool:
    """Whether a message at this depth has a way up."""
    return depth > 0 and depth % _NEAR == 0


def add_jump(connection: Connection, message_no: int, *, depth: int) -> None:
    """Store the way up from a message that is stored."""
    levels = _NEAR if depth % _FAR else _FAR
    above = queries.jumps.find_ancestor(connection, message_no, depth=depth - levels)
    if above is not None:
        queries.jumps.insert_jump(connection, message_no=message_no, above_no=above.message_no)
