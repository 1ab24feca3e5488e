"""Summarises the upstreams for operators: which are in rotation, why others are not, and their models."""

import asyncio
from contextlib import suppress
from typing import Any

from proxy.upstream.upstreams import Upstreams

_MODELS_SHOWN = 100  # of each upstream: /ready is polled, and the answer must stay small


def counts(upstreams: Upstreams) -> dict[str, int]:
    """The number of upstreams in rotation, and out of it."""
    up = sum(upstream.health.is_in for upstream in upstreams.all)
    return {"up": up, "down": len(upstreams.all) - up}


def overview(upstreams: Upstreams) -> list[dict[str, Any]]:
    """Each upstream's address without credentials, and its state in this process."""
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
    """Waits briefly for model lists that were never read; reading continues in the background."""
    if all(upstream.models is not None for upstream in upstreams.all):
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await upstreams.list_models()
