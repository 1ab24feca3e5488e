"""What the pages show, and what can be done on them."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.ids import uuid7
from proxy.storage import exchange_store
from proxy.storage.exchange import Exchange, Outcome, SessionRef
from proxy.storage.write_batch import write_batch
from proxy.web.searching import pieces_of
from proxy.wire.endpoints import endpoint_of
from proxy.wire.sse import Decoder
from tests.serving import REPOSITORY, running_proxy, settings_for
from tests.stored import assistant, chat, choice, exchange, opened, outcome, say, user, worker
from tests.web.visiting import SAME, dom_of


def long_chat(path: Path, turns: int) -> str:
    """One session of so many turns, told as one resent history."""
    said: list[dict[str, Any]] = []
    for number in range(turns):
        said += [user(f"question {number}."), assistant(f"answer {number}.")]
    with opened(path) as connection:
        return chat(connection, exchange(said[:-1]), outcome(choice(said[-1]["content"])))


def link(response: httpx.Response, rel: str) -> str:
    return next(each["href"] or "" for tag, each in dom_of(response).tags if tag == "a" and each.get("rel") == rel)


async def test_long_conversation_opens_at_its_end_and_is_read_page_by_page(tmp_path: Path) -> None:
    session_id = long_chat(tmp_path / "stellarchat.db", 40)
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        page = await http.get(f"/ui/s/{session_id}")
        assert "answer 39." in page.text
        assert "answer 20." not in page.text
        seen = [page]
        for _ in range(2):
            seen.append(await http.get(link(seen[-1], "prev")))
        assert "question 0." in seen[-1].text
        later = await http.get(link(seen[-1], "next"))
        assert "question 10." in later.text
        assert 'rel="prev"' not in seen[-1].text


async def test_link_to_a_message_shows_it_among_its_neighbours(tmp_path: Path) -> None:
    session_id = long_chat(tmp_path / "stellarchat.db", 40)
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        found = await http.get("/ui/search", params={"q": "question 5."})
        target = next(each["href"] or "" for tag, each in dom_of(found).tags if each.get("class") == "title")
        assert session_id in target
        page = await http.get(target)
        assert "<mark" in page.text
        for text in ("answer 4.", "answer 5.", "answer 12."):
            assert text in page.text
        assert f'id="{target.split("#")[1]}"' in page.text


async def test_branches_are_links_from_fork_to_fork(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        session_id = chat(connection, exchange([user("q")]), outcome(choice("first")))
        for text in ("second", "third"):
            chat(connection, exchange([user("q")], session_id=session_id), outcome(choice(text)))
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        page = await http.get(f"/ui/s/{session_id}")
        for expected in ("third", "second", "first"):
            assert expected in dom_of(page).text
            before = [each["href"] for _, each in dom_of(page).tags if each.get("aria-label") == "Previous alternative"]
            if expected == "first":
                assert not before
                assert "1 / 3" in dom_of(page).text
            else:
                page = await http.get(before[0] or "")


async def test_reply_that_grows_is_shown_and_then_followed_to_its_end(tmp_path: Path) -> None:
    asked = exchange([user("count")])
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        database = tmp_path / "stellarchat.db"
        with opened(database) as connection, worker(database) as worker_id:
            with write_batch(connection) as rows:
                exchange_store.begin(rows, asked, worker_id=worker_id)
            session_id = asked.session.session_id
            live = f"/ui/s/{session_id}/live"
            for sequence, word in enumerate(("one ", "two ", "three")):
                data = f'data: {{"choices":[{{"index":0,"delta":{{"content":"{word}"}}}}]}}\n\n'.encode()
                with write_batch(connection) as rows:
                    exchange_store.append_fragment(
                        rows, asked.origin, exchange_id=asked.exchange_id, sequence=sequence, data=data
                    )
                assert word in (await http.get(live)).text
            growing = await http.get(f"/ui/s/{session_id}")
            assert "one two three" in growing.text
            assert "streaming" in (await http.get("/ui?status=in_progress")).text
            with write_batch(connection) as rows:
                exchange_store.finish_begun(rows, asked, outcome(choice("one two three four")))
        ended = await http.get(live)
        assert "one two three four" in ended.text
        assert "caret" not in ended.text


@pytest.mark.parametrize(
    ("endpoint", "request_", "stream"),
    (
        ("/v1/responses", {"input": "Who?"}, "default_responses_stream.sse"),
        ("/v1/messages", {"messages": [user("Who?")]}, "default_messages_stream.sse"),
        ("/v1/completions", {"prompt": "Who?"}, "default_completion_stream.sse"),
    ),
)
async def test_a_growing_reply_of_every_endpoint_is_shown(
    tmp_path: Path, endpoint: str, request_: dict[str, Any], stream: str
) -> None:
    asked = Exchange(
        user_id="ann",
        session=SessionRef(uuid7(), "new"),
        endpoint=endpoint,
        request_id=uuid7(),
        request={"model": "m", **request_},
    )
    data = (REPOSITORY / "tests/streams/dialects" / stream).read_bytes()
    half, reply = data[: len(data) // 2], endpoint_of(endpoint).reply()
    for event in Decoder().feed(half):
        reply.feed(event)
    text = reply.choices[0].message["content"]
    assert text
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        database = tmp_path / "stellarchat.db"
        with opened(database) as connection, worker(database) as worker_id:
            with write_batch(connection) as rows:
                exchange_store.begin(rows, asked, worker_id=worker_id)
            with write_batch(connection) as rows:
                exchange_store.append_fragment(rows, asked.origin, exchange_id=asked.exchange_id, sequence=0, data=half)
            shown = dom_of(await http.get(f"/ui/s/{asked.session.session_id}/live")).text
    assert " ".join(text.split()) in " ".join(shown.split())


async def test_live_page_that_has_not_changed_is_not_sent_again(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        connection.execute("SELECT 1")
        session_id = say(connection, "hello")
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        etag = (await http.get(f"/ui/s/{session_id}/live?leaf=")).headers["etag"]
        page = await http.get(f"/ui/s/{session_id}/rename")
        again = await http.get(f"/ui/s/{session_id}/rename", headers={"If-None-Match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert etag


async def test_cut_and_failed_replies_say_why(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        left = {"message": "The caller left.", "type": "caller_disconnected"}
        cut = outcome(choice("half a", finish_reason=None), status="incomplete", error=left)
        sessions = [chat(connection, exchange([user("a")]), cut)]
        failed = Outcome(status="failed", http_status=429, error={"message": "slow down", "code": 429})
        sessions.append(chat(connection, exchange([user("b")]), failed))
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        texts = [dom_of(await http.get(f"/ui/s/{each}")).text for each in sessions]
        assert "the caller left" in texts[0]
        assert "half a" in texts[0]
        assert "slow down" in texts[1]
        for status, title in (("incomplete", ">a<"), ("failed", ">b<")):
            listed = (await http.get(f"/ui?status={status}")).text
            assert [each in listed for each in (">a<", ">b<")] == [title == ">a<", title == ">b<"]


async def test_session_is_renamed_and_deleted(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        session_id = say(connection, "hello")
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url, headers=SAME) as http:
        for title, status in (("", 400), ("x" * 501, 400), (" A  new\nname ", 303)):
            response = await http.post(f"/ui/s/{session_id}/rename", data={"title": title})
            assert response.status_code == status
        assert "A new name" in (await http.get("/ui")).text
        asked = await http.get(f"/ui/s/{session_id}/delete")
        assert "2 messages" in asked.text
        assert (await http.post(f"/ui/s/{session_id}/delete")).headers["location"] == "/ui"
        for path in ("", "/rename", "/delete", "/live", "/export"):
            assert (await http.get(f"/ui/s/{session_id}{path}")).status_code == 404


async def test_conversation_is_copied_as_it_can_be_sent_again(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        session_id = chat(connection, exchange([user("it's\n$(reboot) `x` \x1b[2J")]), outcome(choice("ok 'then'")))
        reply = connection.execute("SELECT message_id FROM messages ORDER BY message_no DESC").fetchone()[0]
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        pages = [await http.get(f"/ui/s/{session_id}/copy?m={reply}&as={form}") for form in ("json", "curl")]
        texts = [dom_of(page).text for page in pages]
        body = json.loads(texts[0][texts[0].index("{") : texts[0].rindex("}") + 1])
        assert body["messages"][1] == {"role": "assistant", "content": "ok 'then'"}
        command = texts[1][texts[1].index("curl http") : texts[1].rindex("}'") + 2]
        words = shlex.split(command)
        assert words[1] == f"{url}/v1/chat/completions"
        sent = json.loads(words[words.index("-d") + 1])
        assert sent["messages"][0]["content"] == "it's\n$(reboot) `x` \x1b[2J"
        assert sent["messages"][-1]["role"] == "user"
        assert command.isascii()
        assert "\x1b" not in command


async def test_exchange_shows_its_times_and_both_bodies(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        tools = [{"type": "function", "function": {"name": "look_up"}}]
        asked = exchange([user("q")], temperature=0.25, tools=tools)
        chat(connection, asked, outcome(choice("a"), usage={"prompt_tokens": 1234, "completion_tokens": 7}))
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        text = dom_of(await http.get(f"/ui/x/{asked.exchange_id}")).text
        for part in (
            "0.25",
            "look_up",
            "1\u202f234",
            "9 ms",  # the generation; the whole also has the time until it was stored
            "3 ms",
            asked.request_id,
            '"content": "a"',
            '"content": "q"',
        ):
            assert part in text


async def test_first_visit_shows_how_to_send_a_chat_here(tmp_path: Path) -> None:
    async with running_proxy(settings_for(tmp_path, demo=True)) as url, httpx.AsyncClient(base_url=url) as http:
        text = dom_of(await http.get("/ui")).text
        words = shlex.split(text[text.index("curl http") : text.index("}'") + 2])
        response = await http.post(words[1].removeprefix(url), json=json.loads(words[words.index("-d") + 1]))
        assert response.status_code == 200
        page = await http.get("/ui")
        assert "No chats yet" not in page.text
        assert "What can you do?" in page.text


async def test_sessions_are_listed_page_by_page_each_once(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        for number in range(120):
            say(connection, f"chat {number}.", user_id="ann" if number % 3 else "bob")
        connection.execute("UPDATE sessions SET is_active = 0 WHERE session_no % 5 = 0")
        connection.execute("UPDATE sessions SET updated_at = '2026-01-01T00:00:00.000Z' WHERE session_no % 2 = 0")
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        for query, count in (
            ("", 120),
            ("?user=ann", 80),
            ("?model=m", 120),
            ("?until=2026-01-01", 60),
            ("?model=x", 0),
        ):
            seen: list[str] = []
            path = f"/ui{query}"
            while path:
                page = await http.get(path)
                seen += [each["href"] or "" for _, each in dom_of(page).tags if each.get("class") == "title"]
                path = link(page, "next") if 'rel="next"' in page.text else ""
            assert len(seen) == len(set(seen)) == count


async def test_usage_is_shown_by_day_model_user_and_endpoint(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        for name in ("ann", "bob"):
            asked = exchange([user(uuid7())], user_id=name)
            chat(connection, asked, outcome(choice("x"), usage={"prompt_tokens": 1000, "completion_tokens": 50}))
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        for by, name in (("day", asked.created_at[:10]), ("model", "m"), ("user", "bob"), ("endpoint", "/v1/chat")):
            text = dom_of(await http.get(f"/ui/usage?by={by}")).text
            assert name in text
            assert "2\u202f000" in text
        wrong = await http.get("/ui/usage?since=2026-13-45")
        assert (wrong.status_code, "To the usage" in wrong.text) == (400, True)
        assert (await http.get("/ui/usage?since=2020-01-01&until=2026-01-01")).status_code == 400
        assert (await http.get("/ui/usage?until=0001-01-01")).status_code == 400


async def test_usage_of_many_users_is_read_page_by_page(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        for number in range(103):
            chat(connection, exchange([user("q")], user_id=f"user-{number:03}"), outcome(choice("a")))
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        first = await http.get("/ui/usage?by=user")
        second = await http.get(link(first, "next"))
        names = re.findall(r"user-\d\d\d", first.text + second.text)
        assert names == sorted(set(names))
        assert len(names) == 103
        assert 'rel="next"' not in second.text
        for odd in ("-1", "x", "9" * 30, "999999999", "\u0662"):
            assert (await http.get("/ui/usage", params={"by": "user", "offset": odd})).status_code == 200


@pytest.mark.parametrize(
    ("snippet", "text", "hit"),
    (
        ("a **Rome** b", "rome", "Rome"),
        ("**bold** and **rome** b", "rome", "rome"),
        ("2 ** 3 is **eight** now", "eight", "eight"),
        ("**a**b** x", "a**b", "a**b"),
        ("no mark", "x", None),
        ("****", "x", None),
    ),
)
def test_hit_of_a_snippet_is_found_among_other_stars(snippet: str, text: str, hit: str | None) -> None:
    pieces = pieces_of(snippet, text)
    assert [piece for piece, is_hit in pieces if is_hit] == ([] if hit is None else [hit])


@pytest.mark.parametrize(
    "path",
    (
        "/ui/s/%2e%2e",
        "/ui/s/a%2Fb",
        "/ui/s/a%00b",
        "/ui/s/%ff%fe",
        "/ui/keys/a%20b/revoke",
        "/ui/s/a/m/b/blob/c",
        "/ui/%2e%2e/v1/models",
        "/ui/s/x%0a",
    ),
)
async def test_odd_address_is_a_page_that_says_so(tmp_path: Path, path: str) -> None:
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        request = http.build_request("GET", "/")
        request.url = request.url.copy_with(raw_path=path.encode())
        response = await http.send(request)
        assert response.status_code in (403, 404)
        assert "text/html" in response.headers["content-type"]


@pytest.mark.parametrize("name", ("page.css", "page.js", "icon.svg"))
async def test_files_of_the_page_are_kept_by_the_browser_until_they_change(tmp_path: Path, name: str) -> None:
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        page = await http.get("/ui")
        address = next(
            each.get("href") or each.get("src") or ""
            for _, each in dom_of(page).tags
            if name in (each.get("href") or each.get("src") or "")
        )
        response = await http.get(address)
        assert response.status_code == 200
        assert "immutable" in response.headers["cache-control"]
        assert (await http.get("/ui/static/../site.py")).status_code == 404
