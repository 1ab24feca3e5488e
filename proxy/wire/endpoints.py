"""The dialects that are recorded, by the path that a request comes to and an exchange is stored with."""

from proxy.wire.chat import CHAT
from proxy.wire.dialect_endpoints import COMPLETIONS, MESSAGES, RESPONSES
from proxy.wire.endpoint import Endpoint

ENDPOINTS: dict[str, Endpoint] = {endpoint.path: endpoint for endpoint in (CHAT, RESPONSES, MESSAGES, COMPLETIONS)}


def endpoint_of(path: str) -> Endpoint:
    """The dialect of a stored exchange. What another version stored under an unknown path is read as a chat."""
    return ENDPOINTS.get(path, CHAT)
