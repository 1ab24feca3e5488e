"""When a chat passed its stations is recorded, in their order, and shown on its page."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.recording.spill_codec import finish_line, replay
from proxy.storage.write_batch import write_batch
from tests.fake_upstream import fake_upstream, hang_up
from tests.serving import running_proxy, settings_for
from tests.stored import choice, exchange, opened, outcome, user

STATIONS = ("queued_ms", "head_ms", "time_to_first_token_ms", "duration_ms", "stored_ms")


@pytest.mark.parametrize("changes", ({}, {"transport": "httpx"}))
@pytest.mark.parametrize("is_stream", (False, True))
async def test_stations_are_recorded_in_their_order(tmp_path: Path, changes: Any, is_stream: bool) -> None:
    async with fake_upstream() as upstream:
        settings = settings_for(tmp_path, upstream_url=upstream.url, **changes)
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
            body = {"model": "m", "messages": [user("hi")], "stream": is_stream}
            session_id = (await http.post("/v1/chat/completions", json=body)).headers["x-session-id"]
            (row,) = (await http.get(f"/v1/sessions/{session_id}/exchanges")).json()["exchanges"]
            passed = [row[name] for name in STATIONS]
            unknown = {"queued_ms"} if changes else set()
            unknown |= set() if is_stream else {"time_to_first_token_ms"}
            assert {name for name, moment in zip(STATIONS, passed, strict=True) if moment is None} == unknown
            known = [moment for moment in passed if moment is not None]
            assert known == sorted(known)
            page = (await http.get(f"/ui/x/{row['exchange_id']}")).text
            assert ("Waiting to be sent" in page) == (not changes)
            assert "head" in page
            assert "Waiting to be stored" in page


async def test_chat_that_no_upstream_answered_has_no_stations_but_its_end(tmp_path: Path) -> None:
    async with fake_upstream() as upstream:
        upstream.on("/v1/chat/completions", hang_up())
        settings = settings_for(tmp_path, upstream_url=upstream.url)
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
            body = {"model": "m", "messages": [user("hi")]}
            session_id = (await http.post("/v1/chat/completions", json=body)).headers["x-session-id"]
            (row,) = (await http.get(f"/v1/sessions/{session_id}/exchanges")).json()["exchanges"]
            assert [row[name] for name in STATIONS[:3]] == [None] * 3
            assert (await http.get(f"/ui/x/{row['exchange_id']}")).status_code == 200


def test_spilled_end_keeps_its_stations_and_says_how_long_it_waited(tmp_path: Path) -> None:
    asked, ended = exchange([user("hi")]), outcome(choice("yes"))
    ended.queued_ms, ended.head_ms, ended.completed_at = 2, 7, "2026-01-01T00:00:00.000Z"
    with opened(tmp_path / "stellarchat.db") as connection:
        with write_batch(connection) as rows:
            replay(finish_line(asked, ended))(rows)
        statement = "SELECT queued_ms, head_ms, stored_ms > 86400000 FROM exchanges"
        assert connection.execute(statement).fetchall() == [(2, 7, 1)]
