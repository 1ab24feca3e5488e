"""Places that text comes from beside chats: keys, upstreams, endpoints, addresses, dialects. It is text there, too."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.access.keys import NewKey, create_key
from proxy.storage import exchange_store
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.storage.write_batch import write_batch
from proxy.wire import json_text
from proxy.wire.endpoints import endpoint_of
from tests.long import some_of
from tests.serving import running_proxy, settings_for
from tests.stored import choice, exchange, opened, outcome, user
from tests.web.test_untrusted_text import CORPUS
from tests.web.visiting import SAME, assert_harmless, dom_of, log_in

TEXTS = {name: text[:2000] for name, text in CORPUS.items()} | {
    "xlink": '<svg><a xlink:href="javascript:alert(1)"><text>x</text></a><foreignObject><body onload=alert(1)>',
    "scheme": "vbscript:msgbox(1) JaVaScRiPt&colon;alert(1) data:text/html;base64,PHNjcmlwdD4=",
    "mathml": "<math><mi xlink:href='data:x,<script>alert(1)</script>'></math>",
    "noscript": "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "marks": "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069" * 20,
    "invisible": "\u200b\u200d\ufeff\U000e0041\U000e007f",
    "title": "</title><script>alert(1)</script>",
    "nested": "```\n~~~\n```js\n<script>alert(1)</script>\n```\n~~~\n```" * 3,
}


def storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "\u2400")


async def assert_text(
    http: httpx.AsyncClient, path: str, params: dict[str, str] | None = None, *, expects: int = 200
) -> str:
    response = await http.get(path, params=params)
    assert response.status_code == expects, path
    assert_harmless(dom_of(response))
    assert not any(ord(each) < 32 and each not in "\t\n\r" for each in response.text), path
    return dom_of(response).text


@pytest.mark.parametrize("text", some_of(TEXTS.values(), every=4), ids=some_of(TEXTS, every=4))
async def test_names_of_keys_users_upstreams_and_sessions(tmp_path: Path, text: str) -> None:
    name = storable(text)[:200].strip() or "x"
    with opened(tmp_path / "stellarchat.db") as connection:
        with connection.transaction():
            secret, key = create_key(connection, NewKey(user_id=name, name=name, is_admin=True))
        ended = outcome(choice("a", finish_reason=name), model=name)
        ended.upstream = name
        asked = exchange([user("q")], user_id=name)
        asked.session = SessionRef(asked.session.session_id, "header", "an id\u00a0" + name[:50])
        with write_batch(connection) as rows:
            exchange_store.finish(rows, asked, ended)
        connection.execute("UPDATE parameters SET endpoint = ?, model = ?", (name, name))
        connection.execute("UPDATE usage_days SET endpoint = ?", (name,))
        connection.execute("UPDATE exchanges SET request_id = ?, completion_id = ?, error = ?", (name, name, name))
    async with running_proxy(settings_for(tmp_path, auth="required")) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await log_in(http, secret)).status_code == 303
        for path in ("/ui/keys", "/ui/usage?by=endpoint", "/ui/usage?by=model", "/ui/usage?by=user", "/ui/upstreams"):
            await assert_text(http, path)
        await assert_text(http, f"/ui/x/{asked.exchange_id}")
        await assert_text(http, f"/ui/s/{asked.session.session_id}")
        row = await http.get(f"/ui/keys/{key.key_id}/revoke")
        assert row.status_code == 200
        assert_harmless(dom_of(row))


@pytest.mark.parametrize("text", some_of(TEXTS.values(), every=4), ids=some_of(TEXTS, every=4))
async def test_words_of_an_address_and_of_a_form(tmp_path: Path, text: str) -> None:
    said = text.encode("utf-8", "replace").decode()[:1000]
    with opened(tmp_path / "stellarchat.db") as connection, write_batch(connection) as rows:
        asked = exchange([user(said)])
        exchange_store.finish(rows, asked, outcome(choice(said)))
    session = f"/ui/s/{asked.session.session_id}"
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        for name in ("q", "role", "order", "offset", "user"):
            await assert_text(http, "/ui/search", {"q": "x", name: said})
        for name in ("model", "status", "user", "after"):
            await assert_text(http, "/ui", {name: said})
        for name in ("by", "user"):
            await assert_text(http, "/ui/usage", {name: said})
        await assert_text(http, session, {"q": said})
        await assert_text(http, f"{session}/copy", {"m": said}, expects=404)
        for path, given in (("/ui", {"since": said}), ("/ui/usage", {"until": said}), (session, {"branch": said})):
            response = await http.get(path, params=given)
            assert response.status_code in (200, 400, 404)
            assert_harmless(dom_of(response))
        renamed = await http.post(f"{session}/rename", data={"title": said[:400]}, headers=SAME)
        assert renamed.status_code in (303, 400)
        for path in (session, "/ui", f"{session}/delete", f"{session}/rename"):
            await assert_text(http, path)
        refused = await http.post("/ui/login", data={"key": said, "next": said}, headers=SAME)
        assert_harmless(dom_of(refused))


def _bodies(text: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """A request and its reply on each endpoint, which say the text wherever they can."""
    file = {"type": "input_file", "filename": text, "file_data": text, "file_id": text}
    image = {"type": "input_image", "image_url": text, "detail": text}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": text}, file, image, {"type": text, text: text}]},
        {
            "type": "reasoning",
            "id": text,
            "summary": [{"type": "summary_text", "text": text}],
            "encrypted_content": text,
        },
        {"type": "function_call", "call_id": text, "name": text, "arguments": text},
        {"type": "function_call_output", "call_id": text, "output": text},
        {"type": text, "id": text, "x": text},
    ]
    said = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": [text]}],
    }
    responses = {"model": text, "instructions": text, "input": items, "previous_response_id": text}
    blocks = [
        {"type": "thinking", "thinking": text, "signature": text},
        {"type": "tool_use", "id": text, "name": text, "input": {text: text}},
        {"type": text, "x": text},
    ]
    document = {"type": "document", "title": text, "source": {"type": "text", "media_type": text, "data": text}}
    result = {"type": "tool_result", "tool_use_id": text, "content": text, "is_error": True}
    picture = {"type": "image", "source": {"type": "base64", "media_type": text, "data": text}}
    turns = [
        {"role": "user", "content": [document, picture, {"type": "text", "text": text}]},
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": [result]},
    ]
    messages = {"model": text, "system": [{"type": "text", "text": text}], "messages": turns, "tools": [{"name": text}]}
    reply = {"id": text, "model": text, "content": [{"type": "text", "text": text}], "stop_reason": text}
    choices = [{"index": 0, "text": text, "finish_reason": text}]
    return {
        "/v1/responses": (responses, {"id": text, "status": "completed", "model": text, "output": [*items[1:3], said]}),
        "/v1/messages": (messages, {"type": "message", "role": "assistant", **reply}),
        "/v1/completions": ({"model": text, "prompt": text}, {"id": text, "model": text, "choices": choices}),
    }


@pytest.mark.parametrize("text", some_of(TEXTS.values(), every=4), ids=some_of(TEXTS, every=4))
async def test_chats_of_every_endpoint(tmp_path: Path, text: str) -> None:
    said = text.encode("utf-8", "replace").decode()
    paths = []
    with opened(tmp_path / "stellarchat.db") as connection:
        for path, (request, reply) in _bodies(said).items():
            session = SessionRef(exchange([]).session.session_id, "new")
            asked = Exchange(user_id="ann", session=session, endpoint=path, request_id=said, request=request)
            whole = endpoint_of(path).reply(asked.asked)
            whole.take_whole(json_text.dumps(reply).encode())
            with write_batch(connection) as rows:
                exchange_store.finish(rows, asked, Outcome(status="completed", http_status=200, reply=whole))
            statement = "SELECT message_id FROM messages WHERE session_id = ? ORDER BY message_no DESC"
            last = connection.execute(statement, (session.session_id,)).fetchone()[0]
            copied = f"/ui/s/{session.session_id}/copy?m={last}"
            paths += [
                f"/ui/s/{session.session_id}",
                f"/ui/x/{asked.exchange_id}",
                f"{copied}&as=curl",
                f"{copied}&as=json",
            ]
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        for path in paths:
            await assert_text(http, path)
