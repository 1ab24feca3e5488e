"""The errors that callers see, and their JSON responses in OpenAI's or Anthropic's format."""

import logging
from email.utils import formatdate
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from proxy.wire import json_text

_MESSAGES = "/v1/messages"  # Anthropic's, with its own error format

logger = logging.getLogger(__name__)


class APIError(Exception):
    """Ends the request with `status` and `{"error": {message, type, param, code}}`."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 500,
        type_: str = "server_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type_
        self.param = param
        self.code = code
        self.headers = headers

    def as_json(self) -> dict[str, Any]:
        """The body of the response."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def as_anthropic(self) -> dict[str, Any]:
        """The error in the format of Anthropic's API."""
        return {"type": "error", **self.as_json(), "request_id": (self.headers or {}).get("X-Request-Id")}


class InvalidRequestError(APIError):
    """400: `param` names the invalid field, header or query parameter."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, status=400, type_="invalid_request_error", param=param, code="invalid_value")


class NotFoundError(APIError):
    """404: it does not exist, or belongs to another user."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=404, type_="not_found_error", code="not_found")


def too_large(limit_bytes: int) -> APIError:
    """413: the request body exceeds the limit."""
    return APIError(
        f"The request body is larger than {limit_bytes} bytes.",
        status=413,
        type_="invalid_request_error",
        code="request_too_large",
    )


class UnavailableError(APIError):
    """503: the database cannot be written at the moment."""

    def __init__(self, message: str = "The database cannot be written at the moment; try again.") -> None:
        super().__init__(message, status=503, code="database_unavailable", headers={"Retry-After": "1"})


class ReadTimeoutError(APIError):
    """503: a database read was interrupted because others are waiting for the connection."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"Reading this took longer than {seconds:g} s; ask for less at once.", status=503, code="read_timeout"
        )


class UpstreamError(APIError):
    """502 or 504: upstream could not be reached, or sent no valid response.

    `is_unsent`: the connection was not established, so no engine has processed the request.
    """

    def __init__(self, message: str, *, status: int, code: str, is_unsent: bool = False) -> None:
        super().__init__(message, status=status, type_="upstream_error", code=code)
        self.is_unsent = is_unsent
        self.upstream: str | None = None  # the address of the upstream; not shown to callers


def json_response(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response of our own, with a `Date` header: uvicorn's is disabled so that upstream's is passed through."""
    extra = {"date": formatdate(usegmt=True), **(headers or {})}
    return Response(json_text.encoded(content), status_code=status, headers=extra, media_type="application/json")


def error_response(exc: APIError, *, path: str) -> Response:
    """The error response in the dialect of the path."""
    is_anthropic = path == _MESSAGES or path.startswith(_MESSAGES + "/")
    content = exc.as_anthropic() if is_anthropic else exc.as_json()
    return json_response(content, status=exc.status, headers=exc.headers)


async def api_error_response(request: Request, exc: Exception) -> Response:
    """The response of an `APIError`."""
    assert isinstance(exc, APIError)
    return error_response(exc, path=request.scope["path"])


async def http_error_response(_request: Request, exc: Exception) -> Response:
    """The response for Starlette's own exceptions: unknown route, unsupported method."""
    assert isinstance(exc, HTTPException)
    kind = "not_found_error" if exc.status_code == 404 else "invalid_request_error"
    error = APIError(exc.detail, status=exc.status_code, type_=kind, headers=dict(exc.headers or {}))
    return json_response(error.as_json(), status=error.status, headers=error.headers)


async def unexpected_error_response(_request: Request, _exc: Exception) -> Response:
    """The response for an unexpected exception, without details; Starlette logs the traceback."""
    return json_response(APIError("Internal server error").as_json(), status=500)
