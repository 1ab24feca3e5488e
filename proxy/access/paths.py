"""Decides by its canonical path whether a request may reach upstream, and for whom. Pure.

Upstream, or a server in front of it, may decode, normalise or truncate a path in its own way (nginx decodes and merges
slashes if proxy_pass has a URI). A path that could be read differently is not relayed at all. Any other path has a
single meaning, which decides whether an ordinary caller may request it.
"""

import re
import unicodedata
from enum import Enum
from urllib.parse import unquote_to_bytes

# Harmless routes outside /v1. A path in neither list may control the engine, and requires an admin key.
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
# Control routes below /v1, at any position and with any suffix.
_CONTROLS = ("load_lora_adapter", "unload_lora_adapter")
# Prefixes of routes that control the engine. If a server in front of the engine removes /v1
# (`location /v1/ { proxy_pass http://engine/; }`), /v1/sleep becomes /sleep. No OpenAI route has such a prefix.
_ROOT_CONTROLS = (
    *("abort", "collective_rpc", "docs", "flush_", "inference", "init_", "invocations", "is_paused", "is_scaling"),
    *("is_sleeping", "metrics", "openapi.json", "pause", "redoc", "release_", "reset_", "resume", "scale_"),
    *("server_info", "sleep", "start_", "stop_", "update_", "wake_up"),
)
# RFC 3986 §2.1: "%" is always followed by two hexadecimal digits. Servers differ in what they make of other text.
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# Characters that end, separate or escape path segments in some server.
_RESERVED = frozenset("\\;?#%")


class Reach(Enum):
    """Who may request a path from upstream."""

    ANYONE = "anyone"
    ADMINS = "admins"
    NOBODY = "nobody"


def reach_of(raw_path: bytes) -> Reach:
    """Who may request this raw path (from the request line, without the query)."""
    path = canonical(raw_path)
    if path is None:
        return Reach.NOBODY
    segments = path.casefold().split("/")
    if path.startswith("/v1/"):
        is_control = segments[2].startswith(_ROOT_CONTROLS) or any(
            segment.startswith(_CONTROLS) for segment in segments[2:]
        )
        return Reach.ADMINS if is_control else Reach.ANYONE
    return Reach.ANYONE if path in _HARMLESS else Reach.ADMINS


def canonical(raw_path: bytes) -> str | None:
    """The decoded path; None if another server might read it differently."""
    if not raw_path.startswith(b"/") or _BAD_ESCAPE.search(raw_path) or b"#" in raw_path:
        return None
    try:
        path = unquote_to_bytes(raw_path).decode()
    except UnicodeDecodeError:
        return None
    # Servers that normalise Unicode turn full-width slashes and dots into ordinary ones.
    folded = unicodedata.normalize("NFKC", path)
    if not folded.isprintable() or not path.isprintable() or not _RESERVED.isdisjoint(folded):
        return None
    if folded.count("/") != path.count("/"):
        return None
    # A trailing slash is part of the path; an empty segment in the middle is not allowed.
    segments = folded.removesuffix("/").split("/")[1:] if folded != "/" else []
    if any(not segment.strip(" .") or segment != segment.strip() for segment in segments):
        return None
    return folded
