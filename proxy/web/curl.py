"""Writes a request as a curl command that a visitor can paste into a shell."""

import json
import shlex
from typing import Any

from proxy.web.visits import Visit
from proxy.wire import anthropic
from proxy.wire.chat import CHAT


def curl(visit: Visit, body: dict[str, Any], *, path: str = CHAT.path) -> str:
    """The command, with safe shell quoting. `path` is the endpoint's."""
    words = [f"curl {visit.base_url}{path.removeprefix('/v1')}", "-H 'Content-Type: application/json'"]
    if path == anthropic.PATH:
        words.append("-H 'anthropic-version: 2023-06-01'")
    if visit.visitor.has_key:
        words.append('-H "Authorization: Bearer $STELLARCHAT_KEY"')
    # ASCII only, so that no escape sequence can reach a terminal.
    words.append(f"-d {shlex.quote(json.dumps(body))}")
    return " \\\n  ".join(words)
