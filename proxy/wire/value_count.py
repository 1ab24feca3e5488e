"""Counts the values of a JSON text, piece by piece and without parsing it. Pure."""

import re

# A string, whole or as far as the text goes (then group 1 takes part), or what separates two values or opens a list.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|(\\?\Z))|[,\[{]', re.DOTALL)


class ValueCount:
    """How many values the pieces of one text hold, at most: one for each comma and opening bracket outside strings."""

    def __init__(self) -> None:
        self.count = 0
        self._open = b""  # how the next piece is to begin, so that it is read as what it is: inside a string

    def feed(self, piece: bytes) -> None:
        """Count a piece; the cost is linear in its length, whatever it holds."""
        last = None
        for token in _TOKEN.finditer(self._open + piece):
            last = token
            self.count += token.end() - token.start() == 1 and token.group() != b'"'
        is_open = last is not None and last.lastindex == 1
        self._open = b'"' + last.group(1) if last is not None and is_open else b""
