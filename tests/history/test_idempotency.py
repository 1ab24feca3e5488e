"""A change that is sent again with the same Idempotency-Key is made once, also after a restart."""

from pathlib import Path
from typing import Any

import httpx

from tests.serving import running_proxy, settings_for

KEY = {"Idempotency-Key": "k1"}


async def sent(client: httpx.AsyncClient, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post(path, json=body, headers=KEY | named)


async def test_a_session_and_a_message_sent_again_are_made_once(tmp_path: Path) -> None:
    made: list[tuple[str, str]] = []
    for _ in range(2):
        async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as client:
            for _ in range(2):
                session = (await sent(client, "/v1/sessions", {"title": "t"})).raise_for_status().json()
                path = f"/v1/sessions/{session['session_id']}/messages"
                message = (await sent(client, path, {"role": "user", "content": "hi"})).raise_for_status().json()
                made.append((session["session_id"], message["message_id"]))
            assert (await client.get("/v1/sessions")).json()["total"] == 1
            assert (await client.get(path)).json()["total"] == 1
    assert len(set(made)) == 1


async def test_a_key_is_of_one_user_one_route_and_one_body(tmp_path: Path) -> None:
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as client:
        first = (await sent(client, "/v1/sessions", {"title": "t"})).json()["session_id"]
        other_body = await sent(client, "/v1/sessions", {"title": "another"})
        assert (other_body.status_code, other_body.json()["error"]["code"]) == (422, "idempotency_key_reused")
        other_user = await sent(client, "/v1/sessions", {"title": "t"}, X_User_Id="ann")
        other_route = await sent(client, "/api/sessions", {"title": "t"})
        assert other_user.json()["session_id"] != first
        assert other_route.json()["id"] != first
