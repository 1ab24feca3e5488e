"""Chats of every endpoint on the page: each is shown, copied and repeated as its own endpoint has it."""

import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser.invented import tell
from tests.serving import running_proxy, settings_for
from tests.stored import chat, choice, exchange, opened, outcome, user
from tests.web.visiting import dom_of

JSON = dict[str, Any]


@pytest.fixture
async def told(tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str], dict[str, str]]]:
    """A browser; sessions by name; and the last exchange of each."""
    with opened(tmp_path / "stellarchat.db") as connection:
        sessions = tell(connection)
        newest = (
            "SELECT e.exchange_id FROM exchanges AS e JOIN sessions AS s USING (session_no) "
            "WHERE s.session_id = ? ORDER BY e.exchange_no DESC"
        )
        last = {name: connection.execute(newest, (id_,)).fetchone()[0] for name, id_ in sessions.items()}
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        yield http, sessions, last


Told = tuple[httpx.AsyncClient, dict[str, str], dict[str, str]]


def json_of(response: httpx.Response, label: str) -> Any:
    """The JSON below one of the page's labels."""
    text = response.text.split(f'aria-label="{label}"')[1].split(">", 1)[1].split("</pre>")[0]
    return json.loads(text.replace("&#34;", '"').replace("&#39;", "'").replace("&gt;", ">").replace("&lt;", "<"))


async def test_items_of_responses_are_shown_each_as_what_it_is(told: Told) -> None:
    http, sessions, _ = told
    text = dom_of(await http.get(f"/ui/s/{sessions['responses']}")).text
    for part in ("Count the files.", "shell", "apply_patch", "*** Begin Patch", "index.md", "web_search_call"):
        assert part in text
    for part in ("encrypted_content", "url_citation", "As Responses has it"):  # what the chat's form cannot say
        assert part in text
    assert "Other fields" not in text


async def test_blocks_of_messages_are_shown_each_as_what_it_is(told: Told) -> None:
    http, sessions, _ = told
    page = await http.get(f"/ui/s/{sessions['anthropic']}")
    text = dom_of(page).text
    for part in ("Be brief.", "A green hill. I can look", "Let me look.", "find_place", "no such town"):
        assert part in text
    for part in ("redacted_thinking", "signature", "As Messages has it"):
        assert part in text
    assert 'class="picture"' in page.text
    results = [each for each in page.text.split("<li class=") if "Tool result" in each]
    assert ["failed" in each.split("</header>")[0] for each in results] == [False, True]
    assert ["find_place" in each.split("</header>")[0] for each in results] == [True, False]


async def test_exchange_shows_request_and_reply_as_they_were_sent(told: Told) -> None:
    http, _, last = told
    page = await http.get(f"/ui/x/{last['responses']}")
    request, reply = json_of(page, "Request as JSON"), json_of(page, "Reply as JSON")
    assert request["instructions"] == "You work in a folder of documents."
    assert [item.get("type") for item in request["input"]] == [
        None,
        "reasoning",
        "function_call",
        "custom_tool_call",
        "web_search_call",
        "function_call_output",
        "custom_tool_call_output",
    ]
    assert reply["output"][0]["content"][0]["annotations"][0]["title"] == "The manual"
    page = await http.get(f"/ui/x/{last['anthropic']}")
    request, reply = json_of(page, "Request as JSON"), json_of(page, "Reply as JSON")
    assert request["system"] == [{"type": "text", "text": "Be brief."}]
    assert [block["type"] for block in request["messages"][1]["content"]][:2] == ["thinking", "redacted_thinking"]
    assert request["messages"][2]["content"][1]["is_error"] is True
    assert request["messages"][0]["content"][0]["source"]["type"] in ("base64", "url")
    assert reply["content"] == [{"type": "text", "text": "I cannot tell: there are many such hills."}]
    assert reply["stop_reason"] == "end_turn"
    page = await http.get(f"/ui/x/{last['completion']}")
    assert json_of(page, "Request as JSON") == {"prompt": "Once"}
    assert json_of(page, "Reply as JSON")["choices"] == [{"text": " upon a time.", "finish_reason": "length"}]


def command_of(response: httpx.Response) -> tuple[str, JSON]:
    """The address and the body of a page's curl command."""
    text = dom_of(response).text
    words = shlex.split(text[text.index("curl http") : text.rindex("}'") + 2])
    return words[1], json.loads(words[words.index("-d") + 1])


async def command(told: Told, name: str) -> tuple[str, JSON]:
    http, sessions, _ = told
    page = await http.get(f"/ui/s/{sessions[name]}")
    address = next(each["href"] or "" for _, each in dom_of(page).tags if "as=curl" in (each.get("href") or ""))
    return command_of(await http.get(address))


async def test_command_is_for_the_endpoint_that_was_used(told: Told) -> None:
    address, body = await command(told, "responses")
    assert address.endswith("/v1/responses")
    assert body["instructions"] == "You work in a folder of documents."
    assert body["tools"][0]["name"] == "shell"
    assert body["input"][-1] == {"role": "user", "content": "(your next message)"}
    address, body = await command(told, "anthropic")
    assert address.endswith("/v1/messages")
    assert body["max_tokens"] == 800
    assert body["messages"][0]["content"][0]["source"]["data"].startswith("iVBOR")
    assert body["messages"][-1]["role"] == "user"
    address, body = await command(told, "completion")
    assert address.endswith("/v1/completions")
    assert body["prompt"] == "Once upon a time."
    address, body = await command(told, "trip")
    assert address.endswith("/v1/chat/completions")
    assert body["messages"][0]["role"] == "system"


@pytest.mark.parametrize("name", ("responses", "anthropic", "trip"))
async def test_command_goes_on_with_the_same_session(told: Told, tmp_path: Path, name: str) -> None:
    _, sessions, _ = told
    address, body = await command(told, name)
    folder = tmp_path
    given = settings_for(folder, demo=True)
    async with running_proxy(given) as url, httpx.AsyncClient(base_url=url) as http:
        path = "/v1" + address.split("/v1")[1]
        model = "stellarchat-demo"
        headers = {"X-User-Id": "mara" if name == "trip" else "lena"}
        response = await http.post(path, json={**body, "model": model}, headers=headers)
        assert response.status_code == 200, response.text
        assert response.headers["x-session-id"] == sessions[name]
        assert response.headers["x-session-source"] == "stitched"


async def test_endpoint_of_an_imported_exchange_is_no_way_into_a_shell(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        session_id = chat(connection, exchange([user("q")]), outcome(choice("a")))
        connection.execute("UPDATE parameters SET endpoint = '/v1/x; reboot #'")
        reply = connection.execute("SELECT message_id FROM messages ORDER BY message_no DESC").fetchone()[0]
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        address, _ = command_of(await http.get(f"/ui/s/{session_id}/copy?m={reply}&as=curl"))
        assert address == f"{url}/v1/chat/completions"


@pytest.mark.parametrize("wire", ("[]", "{", '{"anthropic":[1]}', '{"anthropic":{"patch":7,"at":["x",1]}}'))
@pytest.mark.parametrize("extra", ('{"tool_call_id":["x"]}', '{"name":{}}', '{"content":[{"type":"item","item":[]}]}'))
async def test_damaged_message_ends_no_page(tmp_path: Path, wire: str, extra: str) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        asked = exchange([user("q"), {"role": "tool", "tool_call_id": "a", "content": "b"}])
        session_id = chat(connection, asked, outcome(choice("a")))
        connection.execute("UPDATE messages SET wire = ?, extra = ?, content_form = 'json'", (wire, extra))
        connection.execute("UPDATE parameters SET endpoint = '/v1/messages'")
        reply = connection.execute("SELECT message_id FROM messages ORDER BY message_no DESC").fetchone()[0]
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        for path in (f"/ui/s/{session_id}", f"/ui/x/{asked.exchange_id}", f"/ui/s/{session_id}/copy?m={reply}&as=curl"):
            assert (await http.get(path)).status_code == 200, path
