"""The page's route table."""

from starlette.routing import Route

from proxy.web import actions, copying, exchanges, keys, searching, sessions, upstreams, usage
from proxy.web.assets import get_static
from proxy.web.conversation import Conversation
from proxy.web.login import Login, leave
from proxy.web.markdown_process import MarkdownProcess
from proxy.web.rich import Rich
from proxy.web.visits import Handler, Page, Pages, not_found


def site_routes(markdown: MarkdownProcess) -> list[Route]:
    """The routes of one application instance."""
    pages, conversation = Pages(), Conversation()

    def page(path: str, get: Handler | None = None, post: Handler | None = None) -> Route:
        return Route(path, Page(pages, get=get, post=post))

    session = "/ui/s/{session_id}"
    message = f"{session}/m/{{message_id}}"
    return [
        Route("/ui/static/{name}", get_static, methods=["GET"]),
        Route("/ui/login", Login(pages)),
        page("/ui/logout", post=leave),
        page("/ui", get=sessions.list_sessions),
        page("/ui/search", get=searching.search_messages),
        page("/ui/usage", get=usage.show_usage),
        page("/ui/upstreams", get=upstreams.show_upstreams),
        page("/ui/keys", get=keys.list_keys, post=keys.make_key),
        page("/ui/keys/{key_id}/revoke", get=keys.ask_to_revoke, post=keys.revoke),
        page("/ui/x/{exchange_id}", get=exchanges.show_exchange),
        page(session, get=conversation.show),
        page(f"{session}/live", get=conversation.follow),
        page(f"{session}/rename", get=actions.ask_for_title, post=actions.rename),
        page(f"{session}/delete", get=actions.ask_to_delete, post=actions.delete),
        page(f"{session}/export", get=actions.export),
        page(f"{session}/copy", get=copying.copy),
        page(f"{message}/rich", get=Rich(markdown).show),
        page(f"{message}/text", get=actions.message_text),
        page(f"{message}/blob/{{digest}}", get=actions.message_image),
        # Catch all other paths below /ui: they must not be relayed to upstream.
        page("/ui/{path:path}", get=not_found),
    ]
