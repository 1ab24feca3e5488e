"""`/ui/s/{id}/m/{id}/rich`: a message as Markdown, for the page's script to put in place of its plain text."""

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
    """Messages as the helper process makes them: the only markup of the page that no template of ours makes."""

    def __init__(self, markdown: MarkdownProcess) -> None:
        self._markdown = markdown

    async def show(self, visit: Visit) -> Response:
        """The message; 204 where it stays as it is."""
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
