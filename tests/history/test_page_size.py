"""Lists of large messages: a page is limited by its size too, or is read and sent in pieces."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.history import branches, exchange_list, stored_completions
from proxy.services import Services
from tests.chats import Chats, said, user
from tests.serving import running_proxy, settings_for

COUNT = 7
TEXT = "x" * 1000


@pytest.fixture
def session_id(tmp_path: Path) -> str:
    chats = Chats(tmp_path / "stellarchat.db")
    messages = [said(TEXT) if number % 2 else user(TEXT) for number in range(COUNT)]
    session_id = chats.store(messages, said("end"), user_id="default_user")
    for number in range(COUNT):
        chats.store([user(f"{number} {TEXT}")], said(TEXT), user_id="default_user")
    chats.connection.close()
    return session_id


async def walked(client: httpx.AsyncClient, path: str) -> tuple[list[str], list[int]]:
    """The ids of an OpenAI list, page by page, and how many each page had."""
    ids: list[str] = []
    sizes: list[int] = []
    after: dict[str, str] = {}
    while True:
        page = (await client.get(path, params={"limit": "100", **after})).raise_for_status().json()
        ids += [item["id"] for item in page["data"]]
        sizes.append(len(page["data"]))
        if not page["has_more"]:
            return ids, sizes
        after = {"after": page["last_id"]}


async def test_a_page_of_large_items_has_fewer_and_says_that_there_are_more(
    tmp_path: Path, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_completions, "PAGE_BYTES", 2500)
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as client:
        completions, sizes = await walked(client, "/v1/chat/completions")
        assert len(set(completions)) == len(completions) == COUNT + 1
        assert max(sizes) < 4
        messages, sizes = await walked(client, f"/v1/chat/completions/{completions[0]}/messages")
        assert len(set(messages)) == len(messages) == COUNT
        assert max(sizes) < 4
        items, sizes = await walked(client, f"/v1/conversations/conv_{session_id}/items")
        assert len(set(items)) == len(items) == COUNT + 1
        assert max(sizes) < 4


def note_pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the pieces that are read from here on."""
    sizes: list[int] = []
    read = Services.read

    async def noting(self: Services, work: Any) -> Any:
        found = await read(self, work)
        if isinstance(found, tuple) and found and isinstance(found[0], list):
            sizes.append(sum(map(len, found[0])))
        return found

    monkeypatch.setattr(Services, "read", noting)
    return sizes


@pytest.mark.parametrize("form", ("", "&format=openai"))
@pytest.mark.parametrize("order", ("asc", "desc"))
async def test_messages_of_a_session_are_read_and_sent_in_pieces(
    tmp_path: Path, session_id: str, monkeypatch: pytest.MonkeyPatch, form: str, order: str
) -> None:
    path = f"/v1/sessions/{session_id}/messages?limit=1000&order={order}{form}"
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as client:
        whole = (await client.get(path)).raise_for_status()
        monkeypatch.setattr(branches, "_PIECE_BYTES", 2500)
        sizes = note_pieces(monkeypatch)
        streamed = (await client.get(path)).raise_for_status()
        plain = (await client.get(f"/api/sessions/{session_id}/messages?size=100")).raise_for_status().json()
    assert streamed.content == whole.content
    assert "content-length" in whole.headers
    assert "content-length" not in streamed.headers
    assert max(sizes) < 2 * 2500
    assert [len(plain["items"]), plain["total"], plain["page"], plain["size"]] == [COUNT + 1, COUNT + 1, 1, 100]


@pytest.mark.parametrize(("query", "count"), (("", COUNT), ("offset=2", COUNT - 2), ("limit=3&offset=1", 3)))
async def test_large_exchanges_of_a_session_are_read_and_sent_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str, count: int
) -> None:
    chats = Chats(tmp_path / "stellarchat.db")
    for number in range(COUNT):
        session_id = chats.store([user(f"{number}")], said("end"), session="one", user_id="default_user")
    chats.connection.execute("UPDATE exchanges SET metadata = ?", (json.dumps({"large": TEXT}),))
    chats.connection.close()
    path = f"/v1/sessions/{session_id}/exchanges"
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as client:
        whole = (await client.get(f"{path}?{query}")).raise_for_status()
        monkeypatch.setattr(exchange_list, "_PIECE_BYTES", 2500)
        monkeypatch.setattr(exchange_list, "_STEP", 1)
        sizes = note_pieces(monkeypatch)
        streamed = (await client.get(f"{path}?{query}")).raise_for_status()
        assert max(sizes) < 2 * 2500
        assert (await client.get(f"{path}?offset=100")).json() == {"exchanges": [], "total": COUNT}
    assert streamed.content == whole.content
    assert (len(whole.json()["exchanges"]), whole.json()["total"]) == (count, COUNT)
    assert "content-length" in whole.headers
    assert "content-length" not in streamed.headers
