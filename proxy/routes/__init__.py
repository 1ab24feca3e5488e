"""The whole route table."""

from starlette.routing import Route

from proxy.routes import api, completions, conversations, export, health, metrics, models, search, sessions, users
from proxy.routes.chat import PATH, ChatCompletions
from proxy.routes.matching import exact
from proxy.routes.passthrough import Passthrough
from proxy.settings import Settings
from proxy.web import web_routes


def route_table(chats: ChatCompletions, settings: Settings) -> list[Route]:
    """Every route; what no other takes is relayed. Chats get here only by another method."""
    routes = [
        Route(PATH, chats, methods=["POST"]),
        *health.routes,
        *metrics.routes,
        *models.routes,
        *search.routes,
        *export.routes,
        *sessions.routes,
        *api.routes,
        *users.routes,
        *completions.routes,
        *conversations.routes,
        *web_routes(settings, otherwise=Passthrough()),
        Route("/{path:path}", Passthrough()),
    ]
    return exact(routes)
