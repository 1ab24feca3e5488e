"""What a newcomer sees: how to send a first chat, and words where the page's libraries are missing."""

import json
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

import proxy.web
from tests.fake_upstream import fake_upstream, whole_json
from tests.serving import running_proxy, settings_for
from tests.stored import opened, say
from tests.upstream.test_upstreams import free_url, serves
from tests.web.visiting import dom_of, site


def command_of(text: str) -> tuple[str, dict[str, Any]]:
    words = shlex.split(text[text.index("curl http") : text.index("}'") + 2])
    return words[1], json.loads(words[words.index("-d") + 1])


async def test_first_chat_names_a_model_that_upstream_serves_and_works_as_it_stands(tmp_path: Path) -> None:
    async with fake_upstream() as upstream:
        serves(upstream, "a-real-model")
        settings = settings_for(tmp_path, upstream_url=upstream.url)
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
            address, body = command_of(dom_of(await http.get("/ui")).text)
            assert body["model"] == "a-real-model"
            assert (await http.post(address.removeprefix(url), json=body)).status_code == 200
            assert "What can you do?" in (await http.get("/ui")).text


@pytest.mark.parametrize("answer", ({"data": []}, {"data": [{"id": 7}]}, ["odd"], {"data": None}))
async def test_first_visit_says_so_where_no_model_is_known(tmp_path: Path, answer: Any) -> None:
    async with fake_upstream() as upstream:
        upstream.on("/v1/models", whole_json(answer))
        for given in (upstream.url, free_url()):
            settings = settings_for(tmp_path, upstream_url=given)
            async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
                text = dom_of(await http.get("/ui")).text
                assert command_of(text)[1]["model"] == "MODEL"
                assert "no upstream has reported one yet" in text


async def test_a_user_who_has_said_nothing_is_no_first_visit_of_an_admin(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        say(connection, "hello")
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        text = dom_of(await http.get("/ui?user=nobody")).text
        assert "No session matches" in text
        assert "No chats yet" not in text


async def test_newcomer_with_a_key_is_told_to_use_it(tmp_path: Path) -> None:
    async with site(tmp_path) as house, house.visitor("admin") as admin:
        await admin.post("/ui/keys", data={"user": "carl"}, headers={"Sec-Fetch-Site": "same-origin"})
        async with house.visitor("bob") as http:
            await http.post(
                f"/ui/s/{(await http.get('/ui')).text.split('/ui/s/')[1][:36]}/delete",
                headers={"Sec-Fetch-Site": "same-origin"},
            )
            text = dom_of(await http.get("/ui")).text
            assert "$STELLARCHAT_KEY" in command_of(text)[0] or "$STELLARCHAT_KEY" in text


@pytest.mark.parametrize("missing", ("jinja2", "markdown_it", "nh3", "pygments"))
async def test_browser_gets_words_where_the_extra_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(proxy.web, "find_spec", lambda name: None if name == missing else find_spec(name))
    for auth in ("off", "required"):
        settings = settings_for(tmp_path, auth=auth)
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, follow_redirects=True) as http:
            for path in ("/", "/ui", "/ui/", "/ui/s/x", "/ui/login", "/ui/static/page.js"):
                response = await http.get(path, headers={"Accept": "text/html"})
                assert response.status_code == 501
                assert "pip install 'stellarchat[web]'" in response.text
                assert response.headers["content-type"].startswith("text/plain")
