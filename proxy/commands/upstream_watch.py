"""Checks upstreams for `serve` and `doctor`: not our own address; their models, or why they have none."""

import asyncio
import logging
import shlex
import socket
import threading

import click

from proxy.setting_values import without_password
from proxy.settings import ConfigurationError, Settings
from proxy.upstream.client import Upstream
from proxy.wire import json_text

logger = logging.getLogger(__name__)

# Between two checks. vLLM takes minutes to load a model, and is announced within this time after it answers.
_LOOK_SECONDS = 10.0
_MODELS_SHOWN = 5


def refuse_own_address(loaded: Settings, listening: tuple[str, int]) -> None:
    """Raises ConfigurationError if an upstream is this server itself, which would be an endless loop."""
    if loaded.demo:
        return
    for each in loaded.upstreams:
        if each.port == listening[1] and _addresses(each.host) & (_addresses(listening[0]) | _own(listening[0])):
            raise ConfigurationError(
                f"STELLARCHAT_UPSTREAM_URL={without_password(each.url)} is this proxy's own address: "
                "give vLLM's, or another STELLARCHAT_PORT"
            )


def start(loaded: Settings, base: str) -> None:
    """Watches the upstreams in a separate thread, so that a slow one delays no request."""
    watch = _Watch(loaded, base)
    threading.Thread(target=lambda: asyncio.run(watch.run()), daemon=True, name="upstream-watch").start()


def without_models(upstream: Upstream, *, has_key: bool) -> tuple[str, str]:
    """The problem of an upstream that answers but lists no model, and how to fix it."""
    if upstream.refused_list in ("status 401", "status 403"):
        if has_key:
            return f"rejects our key ({upstream.refused_list})", "give its key in STELLARCHAT_UPSTREAM_API_KEY"
        return f"requires a key ({upstream.refused_list})", "set STELLARCHAT_UPSTREAM_API_KEY"
    if upstream.refused_list == "status 508":  # our own answer to a request that came back
        return "leads back to this proxy", "give vLLM's address in STELLARCHAT_UPSTREAM_URL"
    if upstream.refused_list:
        return f"answers, but gives no model list ({upstream.refused_list})", "is this vLLM's address, without a route?"
    return "answers, but lists no model", "check that a model is loaded"


def sample_line(base: str, model: str) -> str:
    """An example request, ready to be copied."""
    body = json_text.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    return f"Try: curl {base}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}"


class _Watch:
    def __init__(self, loaded: Settings, base: str) -> None:
        self._upstreams = [Upstream(loaded, address) for address in loaded.upstreams]
        self._base = base
        self._has_key = loaded.upstream_api_key is not None
        self._said: dict[str, str | None] = {}
        self._has_shown_sample = False

    async def run(self) -> None:
        """Checks every few seconds and prints changes."""
        while True:
            for upstream in self._upstreams:
                await self._look(upstream)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self, upstream: Upstream) -> None:
        trouble = None if await upstream.probe() else upstream.health.reason
        if self._said.get(upstream.name, "") == trouble:
            return
        self._said[upstream.name] = trouble
        if trouble is not None:
            logger.warning("upstream %s: %s. Chats fail until it answers.", upstream.name, trouble.rstrip("."))
            return
        await upstream.read_models()
        models = sorted(upstream.models or ())
        if not models:
            what, advice = without_models(upstream, has_key=self._has_key)
            logger.warning("upstream %s %s: %s", upstream.name, what, advice)
            return
        shown = ", ".join(models[:_MODELS_SHOWN]) + (", …" if len(models) > _MODELS_SHOWN else "")
        logger.info("upstream %s answers; models: %s", upstream.name, shown)
        if not self._has_shown_sample:
            self._has_shown_sample = True
            click.echo(sample_line(self._base, models[0]))


def _addresses(host: str) -> set[str]:
    try:
        return {str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def _own(listening: str) -> set[str]:
    """The addresses of a server that listens on all interfaces."""
    if listening not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not listened on
        return set()
    return {"127.0.0.1", "::1", "0.0.0.0", "::"} | _addresses(socket.gethostname())  # noqa: S104
