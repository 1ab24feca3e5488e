"""Maintains jump pointers to distant ancestors on long branches, inside the writer's transaction.

They are created with the messages, and deleted when a message is moved. If one is missing, finding an ancestor takes
more steps but gives the same result.
"""

from proxy.storage import queries
from proxy.storage.connection import Connection

# One message in this many stores a jump; finding its target costs each of them about one step.
_NEAR = 64
_FAR = 4096


def wants_jump(depth: int) -> bool:
    """Whether a message at this depth has a jump pointer."""
    return depth > 0 and depth % _NEAR == 0


def add_jump(connection: Connection, message_no: int, *, depth: int) -> None:
    """Stores the jump pointer of a stored message."""
    levels = _NEAR if depth % _FAR else _FAR
    above = queries.jumps.find_ancestor(connection, message_no, depth=depth - levels)
    if above is not None:
        queries.jumps.insert_jump(connection, message_no=message_no, above_no=above.message_no)
