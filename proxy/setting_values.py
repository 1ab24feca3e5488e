"""Converts setting values from text, and back for display. Knows no setting by name.

Each function raises ValueError with a message for the operator.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


def text(value: str) -> str:
    return value


def secret(value: str) -> str | None:
    # A newline at the end of a secret's file once made every chat a 502, or every login a 401.
    if re.fullmatch(r"[\x21-\x7e]+", value) is None:
        raise ValueError("a key must consist of visible ASCII characters, because it is sent in a header")
    return value


def switch(value: str) -> bool:
    try:
        return {
            "on": True,
            "true": True,
            "1": True,
            "yes": True,
            "off": False,
            "false": False,
            "0": False,
            "no": False,
        }[value.lower()]
    except KeyError:
        raise ValueError("expected on or off") from None


def one_of(choices: tuple[str, ...]) -> Callable[[str], Any]:
    def cast(value: str) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return value

    return cast


def some_of(choices: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def cast(value: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in value.split(",") if name.strip())
        if not set(names) <= set(choices):
            raise ValueError(f"expected some of {', '.join(choices)}, separated by commas")
        return names

    return cast


def integer(low: int, high: int) -> Callable[[str], int]:
    def cast(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ValueError("expected a whole number") from None
        if not low <= number <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return number

    return cast


def seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError("expected a number of seconds") from None
    if not 0 < number <= 86_400:
        raise ValueError("expected a number of seconds from above 0 to 86400")
    return number


def share(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError("expected a share from 0 to 1")
    return number


def duration(value: str) -> float:
    """Parses `30m`, `24h` or `7d` into seconds; `off` is 0."""
    if value == "off":
        return 0.0
    try:
        seconds = float(value[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[value[-1:]]
    except (ValueError, KeyError):
        seconds = -1.0
    # Up to ten years: more is a mistake in the unit.
    if not 1 <= seconds <= 3660 * 86_400:
        raise ValueError("expected a time such as 30m, 24h or 7d, or off")
    return seconds


def http_url(value: str) -> str:
    parts = urlsplit(value)
    try:
        # `urlsplit` checks the port only when it is read.
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        port_is_right = False
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.query
        or parts.fragment
        or not port_is_right
        or re.search(r"[^\x21-\x7e]|\\", value)
    ):
        raise ValueError("expected an address such as http://127.0.0.1:8000")
    return value


def _upstream_url(value: str) -> str:
    path = urlsplit(http_url(value)).path.rstrip("/")
    # An easy mistake: without this check every chat would be a 404 of upstream's.
    if path.endswith(("/completions", "/responses", "/messages", "/models")):
        raise ValueError("expected vLLM's address without a route, such as http://127.0.0.1:8000")
    return value


def upstream_urls(value: str) -> str:
    if not upstream_addresses(value):
        raise ValueError("expected an address such as http://127.0.0.1:8000")
    return value


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """One upstream of the list. If `model` is set, its model list is not requested."""

    url: str
    model: str | None = None

    @property
    def host(self) -> str:
        """The host name or IP address, without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port, or the default port of the scheme."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)


def upstream_addresses(value: str) -> tuple[UpstreamAddress, ...]:
    """Parses `url,url` or `model@url,...`. Raises ValueError."""
    addresses = []
    for each in filter(None, map(str.strip, value.split(","))):
        model, separator, url = each.partition("@http")
        # An "@" inside the URL, after user and password, always follows "//".
        is_named = bool(separator) and "//" not in model
        url = "http" + url if is_named else each
        addresses.append(UpstreamAddress(_upstream_url(url), model if is_named else None))
    if len(set(addresses)) < len(addresses):
        raise ValueError("an address is listed twice")
    return tuple(addresses)


POSTGRESQL = ("postgresql://", "postgres://")


def database_url(value: str) -> str:
    if value.startswith(POSTGRESQL):
        return value
    # Each process and reader has connections of its own, which cannot share a database in memory.
    if not value.startswith("sqlite:///") or value.endswith("/") or ":memory:" in value:
        raise ValueError("expected sqlite:///PATH (relative), sqlite:////PATH (absolute) or postgresql://…")
    return value


def _names(value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


def header_names(value: str) -> tuple[str, ...]:
    for name in _names(value):
        if re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) is None:
            raise ValueError(f"{name!r} is not a header name")
    return _names(value)


def origins(value: str) -> tuple[str, ...]:
    for origin in _names(value):
        if origin != "*" and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", origin) is None:
            raise ValueError(
                f"{origin!r} is not an origin; expected scheme and host without a path, such as https://chat.example"
            )
    return _names(value)


def host_names(value: str) -> tuple[str, ...]:
    for name in _names(value):
        if re.fullmatch(r"[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\]", name) is None:
            raise ValueError(f"{name!r} is not a host name; leave out scheme and port")
    return tuple(name.lower() for name in _names(value))


def without_password(url: str) -> str:
    """One or several URLs without credentials, for display."""
    # Logs, terminal and error messages show addresses: never with the password.
    return re.sub(r"(?<=//)[^/\s,]*@", "", url)


def shown(value: Any) -> str:
    """A setting's value in the form used in the environment."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
