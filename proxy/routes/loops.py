"""Recognises requests that come back to this proxy from its own upstream, which would be an endless loop."""

from weakref import WeakValueDictionary

from starlette.types import Scope

from proxy.errors import APIError
from proxy.ids import uuid7
from proxy.wire import headers

LOOP_STATUS = 508


class _RequestId:
    """An id that this proxy made. The request's state holds it, so that it is forgotten with the request."""

    __slots__ = ("__weakref__", "value")

    def __init__(self) -> None:
        self.value = uuid7().encode()


class RequestIds:
    """The ids that this proxy made for requests in progress. Proxies between here and the engine pass them on."""

    def __init__(self) -> None:
        self._ours: WeakValueDictionary[bytes, _RequestId] = WeakValueDictionary()

    def id_of(self, scope: Scope) -> bytes:
        """The request's `X-Request-Id`, made here if the caller sent none. Raises APIError if it is one of ours."""
        given = headers.value_of(scope["headers"], b"x-request-id")
        if not given:
            made = scope["state"]["made_request_id"] = _RequestId()
            self._ours[made.value] = made
            return made.value
        if given in self._ours:
            raise APIError(
                "This request came back to the proxy that sent it: its upstream leads back to it.",
                status=LOOP_STATUS,
                code="upstream_loop",
            )
        return given
