"""The gate end to end: who is let in with what, and where keys never come out."""

import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, AuthenticationError

from tests.access.test_keys import bearer, make_key, rows, until
from tests.fake_upstream import FakeUpstream, fake_upstream, mirror
from tests.serving import running_proxy, settings_for

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
OUTSIDE = "sk-outside-admin"


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with fake_upstream() as fake:
        fake.on("*", mirror)
        yield fake


def files_with(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


async def test_no_key_bad_key_and_good_key_in_openai_s_words(upstream: FakeUpstream, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        missing = await http.post(CHAT, json=BODY)
        assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
        assert missing.json()["error"]["type"] == "invalid_request_error"
        for headers in (
            bearer("sk-stellar-wrong"),
            bearer(key + "x"),
            bearer(key[:-1]),
            {"Authorization": key},
            {"Authorization": f"Basic {key}"},
            {"x-api-key": "wrong"},
            {"Cookie": f"key={key}"},
        ):
            refused = await http.post(CHAT, json=BODY, headers=headers)
            assert refused.status_code == 401, headers
            assert key not in refused.text
        assert upstream.calls == []
        for headers in (bearer(key), {"Authorization": f"bEaReR  {key}"}, {"x-api-key": key}):
            assert (await http.post(CHAT, json=BODY, headers=headers)).status_code == 200, headers
        for headers in (
            {"Authorization": "Bearer of-something-else", "x-api-key": key},
            {"x-api-key": "of-something-else", **bearer(key)},
        ):
            assert (await http.post(CHAT, json=BODY, headers=headers)).status_code == 200, headers
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-wrong", max_retries=0) as client:
            with pytest.raises(AuthenticationError, match="Incorrect API key"):
                await client.models.list()
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
            assert (await client.chat.completions.create(**BODY)).choices
    assert rows(tmp_path, "SELECT DISTINCT user_id FROM exchanges JOIN users USING (user_no)") == [("ann",)]


async def test_health_and_ready_are_open_and_nothing_that_looks_like_them(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/ready")).status_code == 200
        calls = len(upstream.calls)
        for path in ("/health/", "/healthz", "//health", "/health/../v1/models", "/ready/x", "/HEALTH", "/health;x"):
            assert (await http.get(path)).status_code == 401, path
        assert len(upstream.calls) == calls


async def test_the_caller_s_key_goes_nowhere_and_upstream_s_key_goes_upstream_only(
    upstream: FakeUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, admin = make_key(tmp_path), make_key(tmp_path, user_id="root", is_admin=True)
    settings = settings_for(
        tmp_path, upstream_url=upstream.url, auth="required", admin_key=OUTSIDE, upstream_api_key="sk-of-upstream"
    )
    texts = []
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        for secret in (key, admin, OUTSIDE):
            for headers in (bearer(secret), {"x-api-key": secret}, {"x-api-key": secret, **bearer(secret)}):
                for path in (CHAT, "/v1/embeddings", "/v1/sessions/none", "/sleep/x"):
                    response = await http.post(path, json=BODY, headers=headers)
                    texts += [response.text, str(response.headers)]
    for call in upstream.calls:
        assert call.header_list.count(("authorization", "Bearer sk-of-upstream")) == 1
        assert b"x-api-key" not in call.head.lower()
        for secret in (key, admin, OUTSIDE):
            assert secret.encode() not in call.head + call.body
    mirrored = [text for text in texts if "sk-of-upstream" in text]
    assert all('"method"' in text for text in mirrored)  # what upstream itself tells
    for secret in (key, admin, OUTSIDE):
        assert not [text for text in texts if secret in text]
        assert secret not in caplog.text
        assert not files_with(tmp_path, secret)


async def test_without_duty_a_caller_s_own_header_passes_and_our_keys_do_not(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    key, admin = make_key(tmp_path), make_key(tmp_path, user_id="root", is_admin=True)
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="off", admin_key=OUTSIDE)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:

        async def seen(headers: dict[str, str], path: str = "/v1/embeddings") -> tuple[int, set[str]]:
            response = await http.post(path, json={}, headers=headers)
            names = {name for name, _ in response.json().get("headers", ())}
            return response.status_code, names & {"authorization", "x-api-key"}

        assert await seen(bearer("sk-for-upstream")) == (200, {"authorization"})
        assert await seen({"x-api-key": "for-upstream"}) == (200, {"x-api-key"})
        for ours in (key, admin, OUTSIDE, "sk-stellar-unknown"):
            assert await seen(bearer(ours)) == (200, set())
            assert await seen({"x-api-key": ours}) == (200, set())
            assert await seen({"x-api-key": ours, **bearer("sk-for-upstream")}) == (200, set())
        assert (await seen({}, "/sleep"))[0] == 404
        assert (await seen(bearer(key), "/sleep"))[0] == 404
        assert (await seen(bearer(admin), "/sleep"))[0] == 200
        assert (await seen(bearer(OUTSIDE), "/sleep"))[0] == 200
        rows(tmp_path, "UPDATE api_keys SET expires_at = '2020-01-01T00:00:00.000Z'")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.post("/sleep", headers=bearer(admin))).status_code == 404


async def test_auto_asks_for_a_key_where_one_is_given_from_outside_or_others_can_come_in(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    for number, (changes, expected) in enumerate(
        (({}, 200), ({"admin_key": OUTSIDE}, 401), ({"host": "0.0.0.0"}, 401), ({"host": "localhost"}, 200))
    ):
        folder = tmp_path / str(number)
        settings = settings_for(folder, upstream_url=upstream.url, auth="auto", **changes)
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
            assert (await http.get("/v1/models")).status_code == expected, changes


async def test_an_admin_s_doing_is_logged_without_content_or_keys(
    upstream: FakeUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="stellarchat.audit")
    admin = make_key(tmp_path, user_id="root", is_admin=True)
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required", admin_key=OUTSIDE)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        for key in (admin, OUTSIDE):
            await http.post(CHAT, json=BODY, headers=bearer(key))
            await http.post(CHAT, json=BODY, headers={**bearer(key), "X-User-Id": "ann"})
            await http.get("/v1/users/ann/history?since=secret", headers=bearer(key))
            await http.delete("/v1/users/nobody%0aELSE", headers=bearer(key))
    said = [record.getMessage() for record in caplog.records if record.name == "stellarchat.audit"]
    [(key_id,)] = rows(tmp_path, "SELECT key_id FROM api_keys")
    for name, lines in ((str(key_id), said[:3]), ("STELLARCHAT_ADMIN_KEY", said[3:])):
        assert lines[0].startswith(f"admin key {name}: POST {CHAT} for 'ann")
        assert lines[0].endswith(": 200")
        assert lines[1].startswith(f"admin key {name}: GET /v1/users/ann/history for itself: ")
        assert lines[2] == f"admin key {name}: DELETE /v1/users/nobody\\nELSE for itself: 404"
    assert "hello" not in " ".join(said)
    assert "secret" not in " ".join(said)


async def test_an_admin_chats_for_whom_it_names_and_a_user_for_itself(upstream: FakeUpstream, tmp_path: Path) -> None:
    key, admin = make_key(tmp_path), make_key(tmp_path, user_id="root", is_admin=True)
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required", admin_key=OUTSIDE)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        for secret, named, user in (
            (key, {}, "ann"),
            (key, {"X-User-Id": "bob"}, "ann"),
            (admin, {}, "root"),
            (admin, {"X-User-Id": "bob"}, "bob"),
            (OUTSIDE, {}, "default_user"),
        ):
            body = {**BODY, "user": "mallory", "safety_identifier": "mallory"}
            assert (await http.post(CHAT, json=body, headers={**bearer(secret), **named})).status_code == 200
            assert rows(
                tmp_path, "SELECT user_id FROM exchanges JOIN users USING (user_no) ORDER BY exchange_id DESC LIMIT 1"
            ) == [(user,)]


async def test_metrics_are_for_admins_where_others_can_come_in(upstream: FakeUpstream, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="auto", host="0.0.0.0", admin_key=OUTSIDE)
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/metrics", headers=bearer(key))).status_code == 404
        assert (await http.get("/metrics", headers=bearer(OUTSIDE))).status_code == 200


async def test_pages_of_other_origins_may_not_call_unless_the_setting_names_them(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    key = make_key(tmp_path)
    asking = {
        "Origin": "https://chat.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    for origins, allowed in (((), False), (("https://chat.example",), True), (("https://other.example",), False)):
        settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required", cors_origins=origins)
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
            calls = len(upstream.calls)
            preflight = await http.options(CHAT, headers=asking)
            assert (preflight.status_code == 200) == allowed
            assert ("access-control-allow-origin" in preflight.headers) == allowed
            assert len(upstream.calls) == calls
            reply = await http.post(CHAT, json=BODY, headers={"Origin": asking["Origin"], **bearer(key)})
            assert reply.status_code == 200
            assert ("access-control-allow-origin" in reply.headers) == allowed
            refused = await http.post(CHAT, json=BODY, headers={"Origin": asking["Origin"]})
            assert refused.status_code == 401
            assert ("access-control-allow-origin" in refused.headers) == allowed


async def test_input_is_never_given_back_as_html(upstream: FakeUpstream, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, upstream_url="http://127.0.0.1:9", auth="off")
    script = "<script>alert(1)</script>"
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        for method, path in (
            ("GET", f"/{script}"),
            ("GET", f"/v1/sessions?limit={script}"),
            ("GET", f"/v1/sessions/{script}"),
            ("GET", f"/v1/users/{script}/history"),
            ("DELETE", f"/v1/users/{script}"),
            ("PATCH", "/health"),
            ("POST", CHAT),
        ):
            headers = {"X-Session-Id": f"two words {script}", "X-User-Id": script, "Accept": "text/html"}
            response = await http.request(method, path, json={"session_id": f"two words {script}"}, headers=headers)
            assert response.status_code >= 400
            assert response.headers["content-type"] == "application/json", (method, path)


async def test_who_is_in_stays_in_while_the_database_cannot_be_read(
    upstream: FakeUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key, late = make_key(tmp_path), make_key(tmp_path)
    settings = settings_for(tmp_path, upstream_url=upstream.url, auth="required")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/v1/models", headers=bearer(key))).status_code == 200
        connection = sqlite3.connect(tmp_path / "stellarchat.db")
        connection.execute("ALTER TABLE api_keys RENAME TO gone")
        connection.commit()
        assert (await http.get("/v1/models", headers=bearer(late))).status_code == 503

        async def was_tried() -> bool:
            return "could not be refreshed" in caplog.text

        await until(was_tried)
        assert (await http.get("/v1/models", headers=bearer(key))).status_code == 200
        connection.execute("ALTER TABLE gone RENAME TO api_keys")
        connection.commit()
        connection.close()
        assert (await http.get("/v1/models", headers=bearer(late))).status_code == 200
