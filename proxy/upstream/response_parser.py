"""Parses the responses of one connection with llhttp (httptools), plus stricter checks.

llhttp itself is strict about line ends, header characters, lengths and chunk sizes. The callbacks here reject what it
accepts: other transfer codings, unknown versions, control characters in the reason phrase, oversized heads
(RFC 9112 §6.3, §11).
"""

import re

import httptools
import httpx

from proxy.upstream.request import FRAMING
from proxy.upstream.response import Response

UNREAD_LIMIT_BYTES = 64 * 1024
"""Maximum unread bytes: a larger head is an error, a larger body pauses reading, so that TCP slows upstream down."""
HEADER_LIMIT = 256  # lines; each costs two objects

# A reason phrase may contain HTAB but no other control character (RFC 9112 §4).
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class ResponseParser:
    """Parses one response after another. `llhttp.feed_data` raises httptools.HttpParserError."""

    __slots__ = (
        "_chunked",
        "_head_only",
        "_interim",
        "_keep_alive",
        "_length_given",
        "_response",
        "has_extra",
        "is_complete",
        "llhttp",
    )

    def __init__(self) -> None:
        self._response: Response
        self.llhttp = httptools.HttpResponseParser(self)

    def begin(self, response: Response, *, head_only: bool) -> None:
        """Starts a response; the following data belongs to it."""
        self._response = response
        self._head_only = head_only
        self._chunked = self._length_given = False
        self._interim = self.is_complete = self.has_extra = self._keep_alive = False

    def end(self) -> bool:
        """Ends a response; returns whether the connection can be reused."""
        if self._head_only:  # the old parser still expects the body that a response to HEAD does not have
            self.llhttp = httptools.HttpResponseParser(self)
        return self._keep_alive and not self.has_extra

    @property
    def body_is_framed(self) -> bool:
        """Whether the body has an explicit end; otherwise it ends when the connection closes."""
        return self._chunked or self._length_given

    def close(self) -> None:
        """Breaks the reference cycle with llhttp's parser, so that no GC pass is needed."""
        del self.llhttp

    # Callbacks of the parser; an exception raised here stops it

    def on_message_begin(self) -> None:
        if self.is_complete:
            self.has_extra = True  # a second response to one request

    def on_status(self, reason: bytes) -> None:
        if not self.is_complete:
            self._response.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self._response
        if response.status:
            # A status means that the head is complete (llhttp reports trailers by the same callback).
            return  # trailers are dropped
        name = name.lower()
        value = value.rstrip()
        if name in FRAMING:
            self._note_framing(name, value)
        response.headers.append((name, value))

    def _note_framing(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            self._length_given = True
        elif self._chunked or value.lower() != b"chunked":
            raise httpx.RemoteProtocolError("Unknown or repeated Transfer-Encoding")
        else:
            self._chunked = True

    def on_headers_complete(self) -> None:
        response, parser = self._response, self.llhttp
        if self.is_complete:
            raise httpx.RemoteProtocolError("A second response to one request")
        status = parser.get_status_code()
        self._check_head(response, status, parser.get_http_version())
        if status < 200:
            # 1xx responses precede the final one (RFC 9110 §15.2); their headers are no part of it.
            self._interim = True
            self._chunked = self._length_given = False
            response.headers, response.reason = [], b""
            return
        self._keep_alive = parser.should_keep_alive()
        response.status = status
        if status in (204, 304):
            self._length_given = True  # there is no body, whatever Content-Length says
        if status >= 300:
            # Upstream has answered without the rest of the request: sending it only delays the caller (RFC 9112 §9.5).
            response.stop_upload()
        if self._head_only:
            self.is_complete = True
            self.has_extra = self._chunked  # the parser would not report a body sent in spite of HEAD

    def _check_head(self, response: Response, status: int, version: str) -> None:
        if version not in ("1.1", "1.0") or (self._chunked and version == "1.0"):
            raise httpx.RemoteProtocolError("Unsupported HTTP version or framing")
        # 101 would turn the connection into another protocol, and RFC 9110 §15 defines no status outside 100 to 599.
        if status < 100 or status == 101 or status > 599:
            raise httpx.RemoteProtocolError(f"Unexpected status {status}")
        if response.reason != b"OK" and _CONTROL.search(response.reason):
            raise httpx.RemoteProtocolError("Illegal character in the reason phrase")
        headers = response.headers
        if len(headers) > HEADER_LIMIT:
            raise httpx.RemoteProtocolError("Too many header lines")
        if response.unread_bytes > UNREAD_LIMIT_BYTES:
            size = sum(len(name) + len(value) + 4 for name, value in headers)
            if size > UNREAD_LIMIT_BYTES:
                raise httpx.RemoteProtocolError("Oversized head")

    def on_body(self, piece: bytes) -> None:
        if self.is_complete:
            self.has_extra = True
        else:
            self._response.append(piece)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        else:
            self.is_complete = True
