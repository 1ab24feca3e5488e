"""Renders the templates and sets the headers of every page. The templates escape all text without exception."""

import re
from datetime import UTC, datetime
from email.utils import formatdate
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from proxy.ids import timestamp
from proxy.web.assets import static

# Content security policy: no external content, no inline script, no HTML from strings except ours, no foreign frames.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types stellarchat",
    )
)
# For user-supplied texts and images: no active content at all.
_SANDBOX = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
_HEADERS = {
    "x-content-type-options": "nosniff",
    # With no-referrer, our own forms would send `Origin: null`, like those of another site.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_NAME_LENGTH_MAX = 500
# Characters that a browser does not display, and surrogates, which UTF-8 cannot encode.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def page_headers() -> dict[str, str]:
    return {"content-security-policy": _POLICY, "date": formatdate(usegmt=True), **_HEADERS}


def raw_headers() -> dict[str, str]:
    """The headers of a user-supplied text or image."""
    return {"content-security-policy": _SANDBOX, "date": formatdate(usegmt=True), **_HEADERS}


def rendered(template: str, values: dict[str, Any]) -> tuple[bytes, str]:
    """A page and its ETag. Takes milliseconds, so run it in a thread."""
    body = _environment.get_template(template).render(values).encode()
    return body, f'"{sha256(body).hexdigest()[:32]}"'


def _visible(value: Any) -> Any:
    """Shows control characters as visible symbols: browsers drop NUL, and pasted escapes could control a terminal."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _UNSEEN.sub(_picture, value)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "\ufffd" if code > 0x7F else "␡" if code == 0x7F else chr(0x2400 + code)


def number(value: int | None) -> str:
    """Formats a number with thin spaces between thousands."""
    return "" if value is None else f"{value:,}".replace(",", "\u202f")


def clip(text: str) -> str:
    """Truncates a title or name, which is long only in malicious input."""
    return text if len(text) <= _NAME_LENGTH_MAX else text[:_NAME_LENGTH_MAX] + "…"


def exact(moment: str) -> str:
    """Formats a stored timestamp for people."""
    return f"{moment[:10]} {moment[11:19]} UTC"


def ago(moment: str, *, now: str | None = None) -> str:
    """How long ago a stored timestamp was; after a month, the date."""
    try:
        then = datetime.fromisoformat(moment)
        seconds = (datetime.fromisoformat(now or timestamp()) - then.astimezone(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return moment  # imported data may be anything
    if seconds < 10:
        return "just now"
    for most, unit, name in ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h"), (30 * 86_400, 86_400, "d")):
        if seconds < most:
            return f"{int(seconds // unit)} {name} ago"
    return moment[:10]


def duration(milliseconds: float | None) -> str:
    """`340 ms`, `12.4 s`, `3 min 20 s`."""
    if milliseconds is None:
        return "–"
    if milliseconds == float("inf"):
        return "over 25 s"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    finalize=_visible,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_environment.filters.update(clip=clip, number=number, exact=exact, ago=ago)
_environment.globals.update(static=static)
