"""Splits a request's parameters into a shared part, its tools, and a part unique to the request. Pure.

Clients send the same tools with every turn, often larger than the conversation itself, next to keys that change each
time. Stored together, the tools would be stored again with every turn.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from proxy.wire import json_text

# Keys whose values usually change with each request: `request_id`, `client_metadata`, `traceId`, `seed` and similar.
_OWN = re.compile(
    r"(?:^|_)(?:id|uuid|metadata|seed|nonce|timestamp)$|[a-z](?:Id|Uuid|Metadata|Timestamp)$|"
    r"^trace|^idempotency|^kv_transfer_params$"
)
# Longer keys are not cached: callers choose them, and the cache lives as long as the process.
_USUAL_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Parameters:
    """JSON texts; `common` and `own` are JSON objects."""

    common: str
    tools: str | None
    own: str | None


def split(request: Mapping[str, Any]) -> Parameters:
    """Splits a request's parameters into the parts that are stored separately."""
    tools = request.get("tools") or None
    own = {key: value for key, value in request.items() if _is_own(key)}
    common = {key: value for key, value in request.items() if key not in own}
    if tools is not None:
        del common["tools"]
    return Parameters(
        json_text.dumps(common),
        None if tools is None else json_text.dumps(tools),
        json_text.dumps(own) if own else None,
    )


def _is_own(key: str) -> bool:
    return _is_usual_own(key) if len(key) <= _USUAL_LENGTH else _OWN.search(key) is not None


# The search takes longer than anything else here, and clients send the same few keys with each request.
@lru_cache(maxsize=1024)
def _is_usual_own(key: str) -> bool:
    return _OWN.search(key) is not None


def join(common: str, tools: str | None, own: str | None) -> str:
    """Reassembles the JSON text of all parameters."""
    members = [_members(common), f'"tools":{tools}' if tools else "", _members(own or "{}")]
    return "{" + ",".join(filter(None, members)) + "}"


def _members(text: str) -> str:
    """The text between an object's braces; "" if it is not an object."""
    return text[1:-1] if text.startswith("{") else ""
