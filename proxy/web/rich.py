"""`/ui/s/{id}/m/{id}/rich`: a message rendered from Markdown, which the page's script shows instead of plain text."""

from functools import partial

from starlette.responses import Response

from proxy.errors import NotFoundError
from proxy.history import branches
from proxy.storage import queries
from proxy.web.markdown_process import MarkdownProcess
from proxy.web.messages import RICH_CHARACTERS
from proxy.web.rendering import page_headers
from proxy.web.visits import Visit


class Rich:
    """Serves HTML from the helper process: the only HTML on the page that does not come from our templates."""

    def __init__(self, markdown: MarkdownProcess) -> None:
        self._markdown = markdown

    async def show(self, visit: Visit) -> Response:
        """The rendered message; 204 if the plain text stays."""
        given = visit.request.path_params
        find = partial(branches.find_session, id_=given["session_id"], user_id=visit.reach)
        session = await visit.services.read(find)
        read = partial(queries.web.get_message_text, message_id=given["message_id"], session_id=session.session_id)
        text = await visit.services.read(read)
        if text is None:
            raise NotFoundError("There is no such message.")
        html = await self._markdown.html_of(text) if len(text) <= RICH_CHARACTERS else None
        if html is None:
            return Response(status_code=204, headers=page_headers())
        body = f'<!doctype html><title>Message</title><div class="rich" dir="auto">{html}</div>'
        return Response(body, media_type="text/html; charset=utf-8", headers=page_headers())
