"""What a request's path may reach upstream: decided on one canonical form, before anything is relayed. Pure.

Upstream, or a server in front of it, may decode, merge, fold or cut a path in ways of its own (nginx decodes and merges
slashes where proxy_pass has a URI). A path that such a reading could change is relayed for nobody. What is left has one
reading, which decides whether an ordinary caller may ask for it.
"""

import re
import unicodedata
from enum import Enum
from urllib.parse import unquote_to_bytes

# Harmless routes outside /v1. Whatever is on neither list may control the engine, and needs an admin key.
_HARMLESS = frozenset(
    {
        "/classify",
        "/detokenize",
        "/load",
        "/ping",
        "/pooling",
        "/rerank",
        "/score",
        "/tokenize",
        "/v2/rerank",
        "/version",
    }
)
# Below /v1, wherever they stand and whatever follows them.
_CONTROLS = ("load_lora_adapter", "unload_lora_adapter")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# What ends a path, parts it, or escapes for some server.
_RESERVED = frozenset("\\;?#%")


class Reach(Enum):
    """Who may have upstream asked for a path."""

    ANYONE = "anyone"
    ADMINS = "admins"
    NOBODY = "nobody"


def reach_of(raw_path: bytes) -> Reach:
    """Who may ask upstream for this path, as it stands in the request line without its query."""
    path = canonical(raw_path)
    if path is None:
        return Reach.NOBODY
    segments = path.casefold().split("/")
    if path.startswith("/v1/"):
        is_control = any(segment.startswith(_CONTROLS) for segment in segments[2:])
        return Reach.ADMINS if is_control else Reach.ANYONE
    return Reach.ANYONE if path in _HARMLESS else Reach.ADMINS


def canonical(raw_path: bytes) -> str | None:
    """The decoded path, or None where another server might read it as another one."""
    if not raw_path.startswith(b"/") or _BAD_ESCAPE.search(raw_path) or b"#" in raw_path:
        return None
    try:
        path = unquote_to_bytes(raw_path).decode()
    except UnicodeDecodeError:
        return None
    # Full-width slashes and dots become ordinary ones where a server normalises Unicode.
    folded = unicodedata.normalize("NFKC", path)
    if not folded.isprintable() or not path.isprintable() or not _RESERVED.isdisjoint(folded):
        return None
    if folded.count("/") != path.count("/"):
        return None
    # A slash at the end is a path of its own; in between, an empty segment is not.
    segments = folded.removesuffix("/").split("/")[1:] if folded != "/" else []
    if any(not segment.strip(" .") or segment != segment.strip() for segment in segments):
        return None
    return folded
