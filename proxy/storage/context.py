"""An exchange's context: which system messages its request had, and where, as it stands in the database. Pure."""

from proxy.wire import json_text


def placed_messages(context: str | None) -> list[tuple[int | None, int]]:
    """How many chained messages came after each, null for the very beginning; and its number.

    A stored text that does not say it places none.
    """
    value = json_text.stored(context)
    pairs = [tuple(each) for each in value if isinstance(each, list)] if isinstance(value, list) else []
    return [pair for pair in pairs if len(pair) == 2 and isinstance(pair[0], int | None) and isinstance(pair[1], int)]
