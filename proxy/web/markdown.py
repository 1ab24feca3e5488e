"""A helper program that converts Markdown to safe HTML: reads texts from stdin, writes HTML to stdout.

It is a separate process because a page of Markdown takes half a second of Python, during which no token would be sent.
Each text and each result is preceded by its length in four bytes. It imports nothing of the server, to start quickly.
"""

import os
import resource
import sys
from typing import Any, BinaryIO

import nh3
from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

# Limit for this helper process (RLIMIT_AS), whatever a text makes the parser do.
_MEMORY_BYTES = 1 << 30
# Longer code is shown without colours: the time limit is for the whole message.
_HIGHLIGHTED_CHARACTERS = 10_000
# Anything else in a link, such as `javascript:`, would run in the page.
_SCHEMES = ("https://", "http://", "mailto:")
_TAGS = {
    *(
        "p",
        "br",
        "hr",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "ul",
        "ol",
        "li",
        "blockquote",
        "pre",
        "code",
        "em",
        "strong",
    ),
    *("s", "a", "table", "thead", "tbody", "tr", "th", "td", "span"),
}
# Headings inside a message are ranked below the page's and the message's own headings.
_HEADINGS = {f"h{level}": f"h{min(level + 2, 6)}" for level in range(1, 7)}


def main(texts: BinaryIO, answers: BinaryIO) -> None:
    """Converts texts until the end of the input."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    os.nice(10)  # lower priority than the server
    markdown = parser()
    while len(head := texts.read(4)) == 4:
        html = to_html(markdown, texts.read(int.from_bytes(head, "big")).decode()).encode()
        answers.write(len(html).to_bytes(4, "big") + html)
        answers.flush()


def to_html(markdown: MarkdownIt, text: str) -> str:
    """HTML with a few allowed tags, without images, ids and styles; links may only be web or mail addresses."""
    return nh3.clean(
        markdown.render(text),
        tags=_TAGS,
        attributes={"a": {"href"}, "ol": {"start"}, "span": {"class"}, "pre": {"tabindex"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )


def parser() -> MarkdownIt:
    """CommonMark with tables. Raw HTML stays text, and an image becomes a link."""
    markdown = MarkdownIt("commonmark", {"html": False, "highlight": _highlighted})
    markdown.enable(["table", "strikethrough"])
    markdown.validateLink = lambda url: url.strip().lower().startswith(_SCHEMES)  # type: ignore[method-assign]
    markdown.add_render_rule("image", _link_to_image)
    for rule in ("heading_open", "heading_close"):
        markdown.add_render_rule(rule, _heading)
    return markdown


def _heading(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    tokens[index].tag = _HEADINGS.get(tokens[index].tag, "h6")
    html: str = self.renderToken(tokens, index, options, env)
    return html


def _link_to_image(_self: Any, tokens: Any, index: int, _options: Any, _env: Any) -> str:
    token = tokens[index]
    address = nh3.clean_text(str(token.attrs.get("src", "")))
    return f'<a href="{address}">{nh3.clean_text(token.content or "image")}</a>'


def _highlighted(code: str, language: str, _attributes: str) -> str:
    """A code block with syntax highlighting, if the language is known."""
    if not language or len(code) > _HIGHLIGHTED_CHARACTERS:
        return ""
    try:
        lexer = get_lexer_by_name(language[:40])
    except ClassNotFound:
        return ""
    coloured: str = highlight(code, lexer, HtmlFormatter(nowrap=True))
    return coloured


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
