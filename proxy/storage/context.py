"""An exchange's context: its request's system messages and their positions, as stored in `exchanges.context`. Pure."""

from proxy.wire import json_text


def placed_messages(context: str | None) -> list[tuple[int | None, int]]:
    """For each system message: the number of chained messages before it (None: at the very beginning), and its number.

    Returns [] for a damaged value.
    """
    value = json_text.stored(context)
    pairs = [tuple(each) for each in value if isinstance(each, list)] if isinstance(value, list) else []
    return [pair for pair in pairs if len(pair) == 2 and isinstance(pair[0], int | None) and isinstance(pair[1], int)]
