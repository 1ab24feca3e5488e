"""Which messages of long branches have a jump pointer to a distant ancestor. Pure.

They are created with the messages, and deleted when a message is moved. If one is missing, finding an ancestor takes
more steps but gives the same result.
"""

# One message in this many stores a jump; finding its target costs each of them about one step.
_NEAR = 64
# 64 times 64: from the end of a million messages, 250 far jumps, 64 near ones and 64 single steps suffice.
_FAR = 4096


def wants_jump(depth: int) -> bool:
    """Whether a message at this depth has a jump pointer."""
    return depth > 0 and depth % _NEAR == 0


def jump_of(message_no: int, *, depth: int) -> dict[str, int]:
    """The jump pointer of a message at `depth`, for `queries.jumps.insert_jumps`: the depth that it leads to."""
    return {"message_no": message_no, "depth": depth - (_NEAR if depth % _FAR else _FAR)}
