"""Translates httpx exceptions about upstream to UpstreamError."""

import errno
import re
import socket
import ssl

import httpx

from proxy.errors import UpstreamError

# Base class of everything that reading a response may raise; `failure` translates it.
Failure = httpx.HTTPError

_ERRNO = re.compile(r"\[Errno (\d+)\]")


def failure(exc: Failure) -> UpstreamError:
    """The error for the caller: its cause in words, without upstream's address."""
    if isinstance(exc, httpx.ConnectTimeout | httpx.PoolTimeout):
        return UpstreamError(
            "Upstream could not be reached in time.", status=504, code="upstream_timeout", is_unsent=True
        )
    if isinstance(exc, httpx.TimeoutException):
        return UpstreamError("Upstream did not answer in time.", status=504, code="upstream_timeout")
    if isinstance(exc, httpx.ConnectError):
        message = f"Upstream cannot be reached: {_cause_of(exc)}."
        return UpstreamError(message, status=502, code="upstream_unreachable", is_unsent=True)
    if isinstance(exc, httpx.RemoteProtocolError) and "closed the connection" in str(exc):
        return UpstreamError(f"{exc}.", status=502, code="upstream_disconnected")
    if isinstance(exc, httpx.ProtocolError):
        return UpstreamError(f"Upstream broke the protocol: {exc}.", status=502, code="upstream_protocol_error")
    return UpstreamError("The connection to upstream broke.", status=502, code="upstream_disconnected")


def _cause_of(exc: BaseException) -> str:
    """Why a connection could not be opened."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return "its name is not known"
        if isinstance(cause, ssl.SSLCertVerificationError):
            # For example "Hostname mismatch, certificate is not valid for '10.0.0.1'." would reveal the address.
            return f"its certificate is not trusted ({cause.verify_message.partition(', certificate is not')[0]})"
        if isinstance(cause, ssl.SSLError):
            return "the TLS handshake failed; it may expect plain http://, or another TLS version"
        # If several addresses were tried, asyncio joins their errors into one message.
        numbers = [int(number) for number in _ERRNO.findall(str(cause))] if isinstance(cause, OSError) else []
        known = next((_CAUSES[number] for number in numbers if number in _CAUSES), None)
        if known is not None:
            return known
        cause = cause.__cause__ or cause.__context__
    return "no connection could be opened"


_CAUSES = {
    errno.ECONNREFUSED: "it refused the connection",
    errno.ECONNRESET: "it reset the connection",
    errno.EHOSTUNREACH: "there is no route to it",
    errno.ENETUNREACH: "its network cannot be reached",
    errno.EMFILE: "the proxy has too many open files",
    errno.ENFILE: "the machine has too many open files",
    errno.EADDRNOTAVAIL: "the proxy has no local port left",
}
