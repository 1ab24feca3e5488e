"""Which upstream was asked: recorded, and told to those who may know."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.access.test_keys import bearer, make_key
from tests.fake_upstream import FakeUpstream, fake_upstream, vllm_error
from tests.serving import running_proxy, settings_for
from tests.upstream.test_upstreams import CHAT, chat, client, free_url, serves

ADMIN = "admin-key-0123456789abcdef0123456789"
HEADER = "x-stellarchat-upstream"


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with fake_upstream() as upstream:
        serves(upstream, "m")
        yield upstream


async def test_an_exchange_says_which_upstream_answered(upstream: FakeUpstream, tmp_path: Path) -> None:
    async with fake_upstream() as other:
        serves(other, "another")
        async with client(tmp_path, upstream.url, other.url) as http:
            await _answered_and_shown(http, upstream.url)


async def _answered_and_shown(http: httpx.AsyncClient, url: str) -> None:
    session_id = (await http.post(CHAT, json=chat())).headers["x-session-id"]
    exchanges = (await http.get(f"/v1/sessions/{session_id}/exchanges")).json()["exchanges"]
    assert [each["upstream"] for each in exchanges] == [url]
    page = await http.get(f"/ui/x/{exchanges[0]['exchange_id']}", headers={"accept": "text/html"})
    assert url in page.text


async def test_a_stream_that_is_begun_says_it_too(upstream: FakeUpstream, tmp_path: Path) -> None:
    async with client(tmp_path, upstream.url) as http:
        session_id = (await http.post(CHAT, json=chat(stream=True))).headers["x-session-id"]
        exchanges = (await http.get(f"/v1/sessions/{session_id}/exchanges")).json()["exchanges"]
    assert [each["upstream"] for each in exchanges] == [upstream.url]


async def test_a_refused_connection_and_an_error_say_it(upstream: FakeUpstream, tmp_path: Path) -> None:
    gone = free_url()
    upstream.on(CHAT, vllm_error(500, "no"))
    for url in (gone, upstream.url):
        async with client(tmp_path, url) as http:
            session_id = (await http.post(CHAT, json=chat())).headers["x-session-id"]
            (exchange,) = (await http.get(f"/v1/sessions/{session_id}/exchanges")).json()["exchanges"]
            assert (exchange["status"], exchange["upstream"]) == ("failed", url)
            assert url not in json.dumps(exchange["error"])


async def test_only_admins_are_told_the_address(upstream: FakeUpstream, tmp_path: Path) -> None:
    own = bearer(make_key(tmp_path))
    settings = settings_for(tmp_path, upstream_url=upstream.url, admin_key=ADMIN, auth="required")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        for path in (CHAT, "/v1/embeddings"):
            told = await http.post(path, json=chat(), headers=bearer(ADMIN))
            assert told.headers[HEADER] == upstream.url
            assert HEADER not in (await http.post(path, json=chat(), headers=own)).headers
        upstream.on(CHAT, vllm_error(503, "busy"))
        assert (await http.post(CHAT, json=chat(), headers=bearer(ADMIN))).headers[HEADER] == upstream.url
        session_id = (await http.post(CHAT, json=chat(), headers=own)).headers["x-session-id"]
        for path in ("exchanges", "export"):
            shown = await http.get(f"/v1/sessions/{session_id}/{path}", headers=own)
            assert shown.status_code == 200
            assert upstream.url not in shown.text
            assert upstream.url in (await http.get(f"/v1/sessions/{session_id}/{path}", headers=bearer(ADMIN))).text


async def test_without_a_key_nobody_is_told_it_in_a_header(upstream: FakeUpstream, tmp_path: Path) -> None:
    async with client(tmp_path, upstream.url) as http:
        for path in (CHAT, "/v1/embeddings", "/v1/models"):
            reply = await http.post(path, json=chat()) if path != "/v1/models" else await http.get(path)
            assert HEADER not in reply.headers


async def test_metrics_tell_the_upstreams_apart(upstream: FakeUpstream, tmp_path: Path) -> None:
    gone = free_url()
    async with client(tmp_path, f"m@{upstream.url}", f"other@{gone}") as http:
        assert (await http.post(CHAT, json=chat())).status_code == 200
        assert (await http.post(CHAT, json=chat(model="other"))).status_code == 502
        text = (await http.get("/metrics")).text
    for name, url, value in (
        ("requests_total", upstream.url, 1),
        ("errors_total", upstream.url, 0),
        ("requests_total", gone, 1),
        ("errors_total", gone, 1),
        ("open_requests", upstream.url, 0),
        ("up", upstream.url, 1),
        ("up", gone, 0),
    ):
        assert f'stellarchat_upstream_{name}{{upstream="{url}"}} {value}.0' in text


@pytest.mark.parametrize("several", (False, True))
async def test_ready_tells_addresses_to_admins_alone_also_when_no_upstream_answers(
    tmp_path: Path, several: bool
) -> None:
    gone = [free_url(), free_url()][: 1 + several]
    own, admin = bearer(make_key(tmp_path)), bearer(make_key(tmp_path, user_id="root", is_admin=True))
    settings = settings_for(tmp_path, upstream_url=",".join(gone), admin_key=ADMIN, auth="required")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        for headers in ({}, own, bearer("sk-stellar-unknown"), {"x-stellarchat-upstream": "1"}):
            answer = await http.get("/ready", headers=headers)
            assert (answer.status_code, answer.json()["upstreams"]) == (503, {"up": 0, "down": len(gone)})
            assert "it refused the connection" in answer.json()["upstream"]
            assert not any(each.removeprefix("http://") in answer.text for each in gone)
        for headers in (admin, bearer(ADMIN), {"x-api-key": ADMIN}):
            shown = (await http.get("/ready", headers=headers)).json()
            assert [each["url"] for each in shown["upstreams"]["list"]] == gone
            assert not any(each in shown["upstream"] for each in gone)


@pytest.mark.parametrize(("host", "is_told"), (("127.0.0.1", True), ("0.0.0.0", False)))
async def test_without_keys_ready_tells_addresses_where_only_this_machine_can_ask(
    upstream: FakeUpstream, tmp_path: Path, host: str, is_told: bool
) -> None:
    async with client(tmp_path, upstream.url, host=host) as http:
        shown = await http.get("/ready")
        assert shown.status_code == 200
        assert (upstream.url in shown.text) == is_told
