"""The route table."""

from starlette.routing import Route

from proxy.routes import (
    api,
    completions,
    conversations,
    export,
    health,
    metrics,
    models,
    responses,
    search,
    sessions,
    users,
)
from proxy.routes.matching import exact
from proxy.routes.passthrough import Passthrough
from proxy.settings import Settings
from proxy.web import web_routes
from proxy.web.markdown_process import MarkdownProcess


def route_table(settings: Settings, markdown: MarkdownProcess) -> list[Route]:
    """All routes except the recorded POSTs, which `app` dispatches itself. Unmatched requests are relayed."""
    routes = [
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
        *responses.routes,
        *web_routes(settings, markdown, otherwise=Passthrough()),
        Route("/{path:path}", Passthrough()),
    ]
    return exact(routes)
