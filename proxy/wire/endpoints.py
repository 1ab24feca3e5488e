"""The table of recorded endpoints, by request path."""

from proxy.wire.chat import CHAT
from proxy.wire.dialect_endpoints import COMPLETIONS, MESSAGES, RESPONSES
from proxy.wire.endpoint import Endpoint

ENDPOINTS: dict[str, Endpoint] = {endpoint.path: endpoint for endpoint in (CHAT, RESPONSES, MESSAGES, COMPLETIONS)}


def endpoint_of(path: str) -> Endpoint:
    """The endpoint of a stored exchange. An unknown path, stored by another version, is read as chat."""
    return ENDPOINTS.get(path, CHAT)
