"""Which headers are forwarded, in both directions (RFC 9110 §7.6.1). Pure; names are lower case, as in ASGI."""

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

# They concern one connection only. `proxy-connection` is no standard, but old clients send it.
HOP_BY_HOP = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
# Set again for upstream: the host is upstream's, the length may change, and Expect has already been answered.
_REPLACED = frozenset({b"host", b"content-length", b"accept-encoding", b"expect", b"x-request-id"})
# OpenAI, Anthropic, Azure, and HTTP proxies.
_CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key", b"proxy-authorization"})
_DROPPED_FROM_REQUEST = HOP_BY_HOP | _REPLACED
_DROPPED_FROM_RESPONSE = HOP_BY_HOP


def to_upstream(
    headers: Iterable[tuple[bytes, bytes]],
    *,
    request_id: bytes,
    passes_credentials: bool,
    api_key: bytes | None,
) -> Headers:
    """The request headers for upstream, without `Host`.

    The caller's credentials are dropped if `api_key` replaces them or if they must not be forwarded.
    """
    dropped = _DROPPED_FROM_REQUEST
    if api_key is not None or not passes_credentials:
        dropped = dropped | _CREDENTIALS
    kept = _without(headers, dropped)
    kept += [(b"accept-encoding", b"identity"), (b"x-request-id", request_id)]
    if api_key is not None:
        kept.append((b"authorization", b"Bearer " + api_key))
    return kept


def to_caller(headers: Iterable[tuple[bytes, bytes]], *, drops_length: bool = False) -> Headers:
    """The response headers for the caller; repeated headers stay repeated."""
    return _without(headers, _DROPPED_FROM_RESPONSE | {b"content-length"} if drops_length else _DROPPED_FROM_RESPONSE)


def value_of(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of a header."""
    for each, value in headers:
        if each == name:
            return value
    return None


def list_of(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The value of a list header; its fields are joined (RFC 9110 §5.3)."""
    values = [value for each, value in headers if each == name]
    return b", ".join(values) if values else None


def trace_context_of(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str] | None:
    """The caller's trace context, if it sent one (https://www.w3.org/TR/trace-context/)."""
    found: dict[str, str] = {}
    for name, value in headers:
        if name == b"traceparent":
            found["traceparent"] = value.decode("latin-1")
        elif name == b"tracestate":
            stated = found.get("tracestate")
            found["tracestate"] = (f"{stated}," if stated else "") + value.decode("latin-1")
    return found if "traceparent" in found else None


def text_of(value: bytes) -> str:
    """Decodes a header value as UTF-8, as clients send it, or else as Latin-1 (historical HTTP)."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _without(headers: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> Headers:
    kept = []
    named: frozenset[bytes] = frozenset()
    for header in headers:
        if header[0] not in dropped:
            kept.append(header)
        elif header[0] == b"connection":
            named |= {token.strip().lower() for token in header[1].split(b",")}
    named -= {b"close", b"keep-alive"}
    return [header for header in kept if header[0] not in named] if named else kept
