"""Finds and replaces lone surrogates, which JSON may contain (RFC 8259 §8.2) but UTF-8 cannot encode.

No database, file or page can therefore contain them.
"""


def is_encodable(text: str) -> bool:
    """Whether the text has no lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encodable(text: str) -> str:
    """The text with "?" for each lone surrogate."""
    return text.encode("utf-8", "replace").decode()
