import asyncio
import threading
from collections.abc import AsyncIterator
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy import services as module
from proxy.app import open_services
from proxy.errors import APIError
from proxy.services import Services
from proxy.storage.fair_turns import current_caller
from tests.access.test_keys import bearer, make_key
from tests.serving import running_proxy, settings_for


@pytest.fixture
async def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Services]:
    monkeypatch.setattr(module, "_READS_PER_CALLER", 5)
    async with open_services(settings_for(tmp_path)) as opened:
        yield opened


def reading(services: Services, caller: str, work: Any) -> "asyncio.Task[Any]":
    context = copy_context()
    context.run(current_caller.set, lambda: caller)
    return asyncio.create_task(services.read(work), context=context)


async def test_reads_of_one_caller_leave_a_reader_for_the_others(services: Services) -> None:
    is_over, started = threading.Event(), threading.Event()

    def slow(_connection: object) -> None:
        started.set()
        is_over.wait(30)

    reads = [reading(services, "ann", slow) for _ in range(5)]
    await asyncio.to_thread(started.wait)
    assert await reading(services, "bo", lambda _: "bo's") == "bo's"
    with pytest.raises(APIError, match="Too many read requests") as refused:
        await reading(services, "ann", slow)
    assert (refused.value.status, refused.value.code) == (429, "read_busy")
    is_over.set()
    await asyncio.gather(*reads)


async def test_callers_are_known_by_their_key_else_by_their_name_and_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    read = Services.read

    async def noting(self: Services, work: Any) -> Any:
        seen.append(current_caller.get()())
        return await read(self, work)

    monkeypatch.setattr(Services, "read", noting)
    settings = settings_for(tmp_path)
    key = make_key(tmp_path, user_id="bo")
    open_, locked = replace(settings, auth="off"), replace(settings, auth="required")
    for given, asked in ((open_, ({}, {"X-User-Id": "ann"})), (locked, (bearer(key),))):
        async with running_proxy(given) as url, httpx.AsyncClient(base_url=url) as client:
            for headers in asked:
                (await client.get("/v1/sessions", headers=headers)).raise_for_status()
    assert seen == ["127.0.0.1 ", "127.0.0.1 ann", "bo"]
