"""Builds the responses to invalid HTTP requests, which are rejected before they reach the application. Pure."""

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from proxy.errors import APIError
from proxy.wire.headers import Headers

# Stricter than RFC 3986 §3.2.2: no percent escapes and sub-delimiters, which servers read in different ways.
_HOST = re.compile(rb"(?:[0-9A-Za-z._~-]+|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{0,5}))?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)
_VERSIONS = ("1.1", "1.0")  # others are a 505 (RFC 9110 §15.6.6)


def refusal(error: APIError) -> bytes:
    """A complete response; the connection is closed after it."""
    body = orjson.dumps(error.as_json())
    head = STATUS_LINE[error.status] + b"content-type: application/json\r\nconnection: close\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def bad_http(message: str) -> APIError:
    """400 for invalid HTTP."""
    return APIError(message, status=400, type_="invalid_request_error", code="bad_http")


def request_is_late() -> APIError:
    """408 Request Timeout."""
    return APIError("The request was not complete within the time limit.", status=408, type_="invalid_request_error")


def head_is_too_large(limit_bytes: int) -> APIError:
    """431. Trailers count as headers."""
    return APIError(
        f"The request's headers are larger than {limit_bytes} bytes.",
        status=431,
        type_="invalid_request_error",
        code="headers_too_large",
    )


def head_error(method: bytes, target: bytes, version: str, headers: Headers) -> APIError | None:
    """The error in a request line or `Host` header, if any (RFC 9112 §2.3, §3, §6.1)."""
    if version not in _VERSIONS:
        return _bad_version(version)
    if method == b"CONNECT":
        return APIError("CONNECT is not supported.", status=405, type_="invalid_request_error")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not is_host(hosts[0]):
        return bad_http("A request must have exactly one valid Host header.")
    if version == "1.0" and any(name == b"transfer-encoding" for name, _ in headers):
        return bad_http("Transfer-Encoding is not allowed in HTTP/1.0.")
    return None if target.startswith(b"/") else _target_error(target, hosts[0])


def _target_error(target: bytes, host: bytes) -> APIError | None:
    """The error in a request target that is not a path: `*` or an address (RFC 9112 §3.2.2, §3.2.4)."""
    absolute = _ABSOLUTE.match(target)
    if absolute and absolute[1].lower() != host.lower():
        return bad_http("The host in the request line differs from the Host header.")
    return None if absolute or target == b"*" else bad_http("The request line has no path.")


@lru_cache(maxsize=64)  # each connection sends the same with every request
def is_host(value: bytes) -> bool:
    """Whether this is `host` or `host:port` with a name, an IPv4 address, or a bracketed IPv6 address."""
    match = _HOST.fullmatch(value)
    if match is None or (match[2] and int(match[2]) > 65_535):
        return False
    return match[1] is None or _is_ipv6(match[1].decode())


def without_upgrade(headers: Headers) -> Headers:
    """Removes the Upgrade headers, so that the body is parsed as HTTP/1.1."""
    kept = []
    for name, value in headers:
        if name == b"connection":
            tokens = [token for token in value.split(b",") if token.strip().lower() != b"upgrade"]
            kept.append((name, b",".join(tokens)))
        else:
            kept.append((name, value))
    return kept


def _bad_version(version: str) -> APIError:
    if version == "0.9":
        return bad_http("The request line has no HTTP version.")
    return APIError(
        f"HTTP/{version} is not supported; HTTP/1.1 is.",
        status=505,
        type_="invalid_request_error",
        code="http_version_not_supported",
    )


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True
