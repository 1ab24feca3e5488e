"""A request's parameters as they are stored: what many requests have in common, their tools, and what is of one alone.
Pure.

Clients send the same tools with every turn, often more than all that is said, and beside them keys that are new each
time. Stored together, each turn would store the tools again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.wire import json_text

# Keys of a request that tend to change with each: `request_id`, `client_metadata`, `traceId`, `seed` and their like.
_OWN = re.compile(
    r"(?:^|_)(?:id|uuid|metadata|seed|nonce|timestamp)$|[a-z](?:Id|Uuid|Metadata|Timestamp)$|"
    r"^trace|^idempotency|^kv_transfer_params$"
)


@dataclass(frozen=True, slots=True)
class Parameters:
    """JSON texts; `common` and `own` of objects."""

    common: str
    tools: str | None
    own: str | None


def split(request: Mapping[str, Any]) -> Parameters:
    """The parts of a request's parameters, each stored by itself."""
    tools = request.get("tools") or None
    common = {key: value for key, value in request.items() if not _OWN.search(key)}
    own = {key: value for key, value in request.items() if _OWN.search(key)}
    if tools is not None:
        del common["tools"]
    return Parameters(
        json_text.dumps(common),
        None if tools is None else json_text.dumps(tools),
        json_text.dumps(own) if own else None,
    )


def join(common: str, tools: str | None, own: str | None) -> str:
    """The JSON text of all parameters."""
    members = [_members(common), f'"tools":{tools}' if tools else "", _members(own or "{}")]
    return "{" + ",".join(filter(None, members)) + "}"


def _members(text: str) -> str:
    """What stands between an object's braces; nothing of what is no object."""
    return text[1:-1] if text.startswith("{") else ""
