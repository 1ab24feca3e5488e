"""Messages as Markdown: harmless whatever they hold, made apart from the server, and within limits."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.web import markdown, markdown_process
from proxy.web.markdown_process import MarkdownProcess
from tests.serving import running_proxy, settings_for
from tests.stored import opened, say
from tests.web.test_untrusted_text import CORPUS
from tests.web.visiting import Dom

_ALLOWED = markdown._TAGS
PARSER = markdown.parser()


@pytest.mark.parametrize("name", [name for name in CORPUS if name != "long"])
@pytest.mark.parametrize(
    "around", ("{}", "```html\n{}\n```", "# {}\n\n> - {}", "[x]({})", "<{}>", "| {} |\n|---|\n| {} |")
)
def test_html_of_untrusted_markdown_is_harmless(name: str, around: str) -> None:
    dom = Dom()
    dom.feed(markdown.to_html(PARSER, around.replace("{}", CORPUS[name]).encode("utf-8", "replace").decode()))
    for tag, attributes in dom.tags:
        assert tag in _ALLOWED
        assert set(attributes) <= {"href", "rel", "class", "start"}
        href = attributes.get("href")
        assert href is None or href.startswith(("https://", "http://", "mailto:"))


def test_markdown_is_rendered() -> None:
    html = markdown.to_html(
        PARSER, "# A\n\n| a |\n|---|\n| **b** |\n\n```python\ndef f(): pass\n```\n\n![i](https://x.example/y)"
    )
    for part in (
        "<h3>A</h3>",
        "<td><strong>b</strong></td>",
        '<span class="nf">f</span>',
        '<a href="https://x.example/y"',
    ):
        assert part in html
    assert "<img" not in html


async def test_helper_answers_and_is_started_anew_after_it_was_killed() -> None:
    helper = MarkdownProcess()
    try:
        assert await helper.html_of("*a*") == "<p><em>a</em></p>\n"
        assert helper._child is not None
        helper._child.kill()
        helper._child.wait()
        assert await helper.html_of("*b*") == "<p><em>b</em></p>\n"
        assert await helper.html_of("*a*") == "<p><em>a</em></p>\n"
    finally:
        await helper.close()
    assert helper._child is None


async def test_text_that_takes_too_long_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("import sys, time\nsys.stdin.buffer.read(4)\ntime.sleep(60)\n")
    monkeypatch.setattr(markdown_process, "_PROGRAM", slow)
    monkeypatch.setattr(markdown_process, "_START_SECONDS_MAX", 0.2)
    helper = MarkdownProcess()
    assert await helper.html_of("*a*") is None
    assert helper._child is None
    await helper.close()


@pytest.mark.parametrize(
    "program",
    (
        "raise SystemExit(1)",
        "import sys\nsys.stdin.buffer.read(4)\nsys.stdout.buffer.write(b'\\xff\\xff\\xff\\xff')\nsys.stdout.flush()",
        "import sys\nsys.stdin.buffer.read(4)\nsys.stdout.buffer.write(b'\\0\\0\\0\\x09half')",
    ),
    ids=("gone", "too much", "half"),
)
async def test_helper_that_fails_costs_only_the_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(program)
    monkeypatch.setattr(markdown_process, "_PROGRAM", broken)
    helper = MarkdownProcess()
    assert await helper.html_of("*a*") is None
    await helper.close()


async def test_only_so_many_wait_for_the_helper() -> None:
    helper = MarkdownProcess()
    try:
        made: list[Any] = await asyncio.gather(*(helper.html_of(f"*{number}*") for number in range(40)))
        assert made[0] == "<p><em>0</em></p>\n"
        assert None in made
    finally:
        await helper.close()


async def test_message_is_made_rich_where_it_has_markdown(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        session_id = say(connection, "plain question", reply="**bold** <script>x</script>")
        replies = "SELECT message_id FROM messages WHERE role = 'assistant'"
        message_id = connection.execute(replies).fetchone()[0]
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        page = await http.get(f"/ui/s/{session_id}")
        assert page.text.count("data-rich") == 1
        rich = await http.get(f"/ui/s/{session_id}/m/{message_id}/rich")
        assert "<strong>bold</strong> &lt;script&gt;" in rich.text
        assert (await http.get(f"/ui/s/{session_id}/m/none/rich")).status_code == 404


async def test_empty_lines_are_searched_for_markdown_in_linear_time(tmp_path: Path) -> None:
    with opened(tmp_path / "stellarchat.db") as connection:
        session_id = say(connection, "\n" * 19_000 + "plain", reply="plain")
    async with running_proxy(settings_for(tmp_path)) as url, httpx.AsyncClient(base_url=url) as http:
        page = await http.get(f"/ui/s/{session_id}")  # in quadratic time 8 s, in which no other thread runs
        assert "plain" in page.text
        assert "data-rich" not in page.text
