"""Recognises requests that come back to this proxy from its own upstream, which would be an endless loop."""

from starlette.types import Scope

from proxy.errors import APIError
from proxy.ids import uuid7
from proxy.wire import headers

LOOP_STATUS = 508

# The ids that this process made for requests in progress. Proxies between here and the engine pass them on.
_ours: set[bytes] = set()


def request_id_of(scope: Scope) -> bytes:
    """The request's `X-Request-Id`, made here if the caller sent none. Raises APIError if this process made the id.

    The endpoint calls `forget` when the request has ended.
    """
    given = headers.value_of(scope["headers"], b"x-request-id")
    if not given:
        made = scope["state"]["made_request_id"] = uuid7().encode()
        _ours.add(made)
        return made
    if given in _ours:
        raise APIError(
            "This request came back to the proxy that sent it: the address of its upstream leads back to the proxy.",
            status=LOOP_STATUS,
            code="upstream_loop",
        )
    return given


def forget(scope: Scope) -> None:
    """Forgets the id that was made for the request: its caller may use it again."""
    _ours.discard(scope["state"].get("made_request_id", b""))
