"""The rules of docs/how-it-works that can be asked of every route: a new route is asked too, without a row anywhere.

Who may read what is in `test_isolation.py` and `web/test_rights.py`, names and pages in `access/test_door_tables.py`,
the background jobs in `maintenance/test_background_jobs.py`.
"""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from proxy.routes import route_table
from proxy.routes.resource import Resource
from proxy.settings import Settings
from proxy.web.markdown_process import MarkdownProcess
from proxy.wire.endpoints import ENDPOINTS
from tests.access.test_keys import bearer, make_key
from tests.fake_upstream import fake_upstream, whole_json
from tests.serving import running_proxy, settings_for

MARKUP = "<script>alert(1)</script>"
OPEN = {"/health", "/ready", "/metrics", "/ui/login", "/ui/logout", "/ui/static/{name}"}
BODY_LIMIT = 100_000


def every_route() -> list[tuple[str, str]]:
    found = [("POST", path) for path in ENDPOINTS]
    for route in route_table(Settings(), MarkdownProcess()):
        endpoint = route.endpoint
        methods = set(endpoint._handlers) if isinstance(endpoint, Resource) else set(route.methods or {"GET", "POST"})
        found += [(method, route.path) for method in sorted(methods - {"HEAD"})]
    return found


def target_of(path: str, value: str) -> str:
    """The path with a value for each of its parameters."""
    if path == "/{path:path}":
        return "/v1/embeddings"
    return re.sub(r"\{[^}]*\}", lambda _: value, path)


@pytest.fixture
async def asked(tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str]]]:
    key = make_key(tmp_path)
    async with fake_upstream() as upstream:
        upstream.on("*", whole_json({"upstream": True}))
        settings = settings_for(
            tmp_path, upstream_url=upstream.url, auth="required", body_limit_bytes=BODY_LIMIT, quiet=True
        )
        async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
            yield http, bearer(key)


def assert_own_shape(path: str, answer: httpx.Response) -> None:
    """An error is OpenAI's, Anthropic's or a page."""
    kind = answer.headers.get("content-type", "")
    if (path.startswith("/ui") or path == "/") and kind.startswith("text/html"):
        return
    if path.startswith("/ui/static/"):
        assert answer.content == b""  # no file of the page
        return
    assert kind == "application/json", (path, answer.status_code, answer.headers, answer.text)
    error = answer.json()["error"]
    assert {"message", "type"} <= set(error)
    assert path == "/v1/messages" or set(error) == {"message", "type", "param", "code"}


async def test_every_route_asks_for_a_key(asked: tuple[httpx.AsyncClient, dict[str, str]]) -> None:
    http, _ = asked
    for method, path in every_route():
        if path in OPEN:
            continue
        answer = await http.request(method, target_of(path, "x"), json={} if method != "GET" else None)
        is_page = path.startswith("/ui")
        # A page leads to its login; a form without the browser's word for where it comes from is refused before that.
        assert answer.status_code in ((303, 403, 405) if is_page else (401,)), (method, path, answer.text)
        if answer.status_code != 303:
            assert_own_shape(path, answer)


async def test_no_route_gives_markup_back_or_breaks_at_it(asked: tuple[httpx.AsyncClient, dict[str, str]]) -> None:
    http, key = asked
    for method, path in every_route():
        for value in ("%3Cscript%3Ealert(1)%3C%2Fscript%3E", "a%2fb", "%00", "%ff", "%F0%9F%98%80", "x" * 5000):
            query = dict.fromkeys(("q", "after", "branch", "limit", "user_id", "next", "m"), MARKUP)
            answer = await http.request(
                method, target_of(path, value), params=query, headers=key, json={"model": MARKUP}
            )
            assert answer.status_code < 500, (method, path, value, answer.text)
            assert "html" not in answer.headers.get("content-type", "") or MARKUP not in answer.text, (method, path)
            if answer.status_code >= 400 and "upstream" not in answer.text:
                assert_own_shape(path, answer)


async def test_every_body_has_a_limit(asked: tuple[httpx.AsyncClient, dict[str, str]]) -> None:
    http, key = asked
    for method, path in every_route():
        if method in ("POST", "PUT", "PATCH"):
            answer = await http.request(method, target_of(path, "x"), headers=key, content=b" " * (BODY_LIMIT + 1))
            assert answer.status_code == 413, (method, path, answer.text)


async def test_every_list_has_a_limit(asked: tuple[httpx.AsyncClient, dict[str, str]]) -> None:
    http, key = asked
    for path in ("/v1/sessions", "/v1/users/ann/history", "/v1/search?q=x", "/api/sessions", "/v1/chat/completions"):
        for limit in ("1001", "99999999999999999999", "-1", "1e3", "x"):
            name = "size" if path.startswith("/api") else "limit"
            joined = f"{path}{'&' if '?' in path else '?'}{name}={limit}"
            answer = await http.get(joined, headers=key)
            assert answer.status_code == 400, (joined, answer.text)
            assert answer.json()["error"]["param"] == name
