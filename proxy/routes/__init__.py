"""The whole route table."""

from starlette.routing import BaseRoute, Route

from proxy.routes import api, completions, conversations, export, health, metrics, search, sessions, users
from proxy.routes.chat import ChatCompletions
from proxy.routes.relay import Relay


def route_table() -> list[BaseRoute]:
    """Every route, the hottest first; what no other takes is relayed."""
    return [
        Route("/v1/chat/completions", ChatCompletions(), methods=["POST"]),
        *health.routes,
        *metrics.routes,
        *search.routes,
        *export.routes,
        *sessions.routes,
        *api.routes,
        *users.routes,
        *completions.routes,
        *conversations.routes,
        Route("/{path:path}", Relay()),
    ]
