"""HTTP towards callers: uvicorn on httptools, and on h11 for the two things that httptools gets wrong."""

from proxy.downstream.h11_protocol import LimitedH11Protocol
from proxy.downstream.httptools_protocol import LimitedProtocol


class Protocol(LimitedProtocol):
    """Gives a connection to h11 if it begins with HTTP/1.0 or asks for an upgrade.

    httptools drops the body of a request with `Upgrade`, which Java's HTTP client sends with its first one (h2c); and
    uvicorn sends it chunks where the caller is of HTTP/1.0 and cannot read them.
    """

    _has_begun = False

    def data_received(self, data: bytes) -> None:
        """Look at the first piece of a connection; what comes after it is for httptools alone."""
        is_first, self._has_begun = not self._has_begun, True
        if is_first and (b" HTTP/1.0\r\n" in data or b"\r\nupgrade:" in data.lower()):
            self._give_to_h11(data)
        else:
            super().data_received(data)

    def _give_to_h11(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self.stop_timers()
        self.connections.discard(self)
        protocol = LimitedH11Protocol(self.config, self.server_state, self.app_state, self.loop)
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(data)
