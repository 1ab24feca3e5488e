"""The page of the upstreams: who may see it, and that it says what `/ready` says."""

from pathlib import Path

import httpx
import pytest

from tests.fake_upstream import fake_upstream, never, whole_json
from tests.serving import running_proxy, settings_for
from tests.upstream.test_upstreams import free_url, serves
from tests.web.visiting import dom_of, site


async def test_upstreams_are_shown_with_their_state_and_their_models(tmp_path: Path) -> None:
    gone = free_url()
    async with fake_upstream() as upstream:
        serves(upstream, "first", "second")
        settings = settings_for(tmp_path, upstream_url=f"{upstream.url},third@{gone.replace('://', '://me:secret@')}")
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
            ready = (await http.get("/ready")).json()["upstreams"]
            assert (ready["up"], ready["down"]) == (1, 1)
            text = dom_of(await http.get("/ui/upstreams")).text
            for part in (upstream.url, gone, "first", "second", "third", "in use", "not in use", "Database: ok"):
                assert part in text
            assert "secret" not in text


@pytest.mark.parametrize("model", ("<script>alert(1)</script>", "\u202ex", "a\0b", '" onload="x', "x" * 100_000))
async def test_names_of_models_are_text(tmp_path: Path, model: str) -> None:
    async with fake_upstream() as upstream:
        serves(upstream, model)
        settings = settings_for(tmp_path, upstream_url=upstream.url)
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as http:
            for path in ("/ui/upstreams", "/ui"):
                response = await http.get(path)
                assert "<script>alert" not in response.text
                assert not any(name.startswith("on") for _, each in dom_of(response).tags for name in each)


async def test_upstream_that_does_not_answer_holds_no_page_up(tmp_path: Path) -> None:
    async with fake_upstream() as upstream:
        upstream.on("/health", never())
        upstream.on("/v1/models", never())
        settings = settings_for(tmp_path, upstream_url=upstream.url)
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=4) as http:
            for path in ("/ui/upstreams", "/ui"):
                assert (await http.get(path)).status_code == 200
            assert "not known yet" in (await http.get("/ui/upstreams")).text
        upstream.on("/v1/models", whole_json({"data": []}))


async def test_only_admins_see_the_upstreams(tmp_path: Path) -> None:
    async with site(tmp_path, upstream_url="http://engine.example:8000") as house:
        for name, status in (("ann", 403), ("admin", 200), (None, 303)):
            async with house.visitor(name) as http:
                response = await http.get("/ui/upstreams")
                assert response.status_code == status
                assert ("engine.example" in response.text) == (name == "admin")
                assert ("/ui/upstreams" in (await http.get("/ui")).text) == (name == "admin")
