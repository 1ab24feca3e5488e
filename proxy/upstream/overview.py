"""What an operator wants to know of the upstreams: which are in use, why others are not, and what they serve."""

import asyncio
from contextlib import suppress
from typing import Any

from proxy.upstream.upstreams import Upstreams

_MODELS_SHOWN = 100


def counts(upstreams: Upstreams) -> dict[str, int]:
    """How many are in use, and how many are not."""
    up = sum(upstream.health.is_in for upstream in upstreams.all)
    return {"up": up, "down": len(upstreams.all) - up}


def overview(upstreams: Upstreams) -> list[dict[str, Any]]:
    """Each one's address without credentials, and its state as this process sees it."""
    return [
        {
            "url": upstream.name,
            "is_up": upstream.health.is_in,
            "reason": upstream.health.reason,
            "open_requests": upstream.open_count,
            "models": None if upstream.models is None else sorted(upstream.models)[:_MODELS_SHOWN],
        }
        for upstream in upstreams.all
    ]


async def ask_for_models(upstreams: Upstreams, *, seconds: float) -> None:
    """Wait a little for the model lists that have never been read; reading goes on beyond that."""
    if all(upstream.models is not None for upstream in upstreams.all):
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await upstreams.list_models()
