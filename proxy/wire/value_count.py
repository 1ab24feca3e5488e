"""Upper bound of the number of values in a JSON text, counted piece by piece without parsing. Pure."""

import re
from collections.abc import Iterator

_PIECE_BYTES = 16 * 2**10  # a few milliseconds of work even for the densest text
# A string (group 1 takes part if it is unterminated), or a character that separates values or opens a container.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|(\\?\Z))|[,\[{]', re.DOTALL)


class ValueCount:
    """Counts each comma and opening bracket outside strings."""

    def __init__(self) -> None:
        self.count = 0
        self._open = b""  # prefix for the next piece, so that a string cut by the boundary is still recognised

    def feed(self, piece: bytes) -> None:
        """Scans one piece in linear time."""
        last = None
        for token in _TOKEN.finditer(self._open + piece):
            last = token
            self.count += token.end() - token.start() == 1 and token.group() != b'"'
        is_open = last is not None and last.lastindex == 1
        self._open = b'"' + last.group(1) if last is not None and is_open else b""


def running_counts(text: bytes) -> Iterator[int]:
    """Counts a whole text; yields the count so far after each piece."""
    values = ValueCount()
    for start in range(0, len(text), _PIECE_BYTES):
        values.feed(text[start : start + _PIECE_BYTES])
        yield values.count
