"""Assembles the ASGI application: opens the services in order at startup and closes them in reverse."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import reduce

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.access.gate import Gate
from proxy.access.middleware import GateMiddleware
from proxy.demo import serve_demo
from proxy.downstream.disconnect import Orphans
from proxy.errors import APIError, api_error_response, http_error_response, unexpected_error_response
from proxy.maintenance.background_jobs import Upkeep
from proxy.recording.recorder import Recorder
from proxy.routes import route_table
from proxy.routes.matching import EncodedSlashes
from proxy.routes.recorded import RecordedEndpoint
from proxy.services import Services, State
from proxy.settings import ConfigurationError, Settings, load
from proxy.storage.engine import database_of
from proxy.telemetry.middleware import ObserverMiddleware
from proxy.telemetry.observer import Observer
from proxy.upstream.upstreams import Upstreams
from proxy.web.markdown_process import MarkdownProcess
from proxy.wire.endpoints import ENDPOINTS

logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
    closing: Callable[[], None] = lambda: None,
) -> ASGIApp:
    """Creates the proxy as an ASGI application.

    `transport` replaces the connection to upstream. `closing` is called when the application begins to close.
    """

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(markdown.close)
            running = settings
            if settings.demo:
                running = replace(settings, upstream_url=await stack.enter_async_context(serve_demo()))
            services = await stack.enter_async_context(open_services(running, transport=transport))
            gate = Gate(running, services.database, write=services.write)
            stack.push_async_callback(gate.close)
            await gate.open()
            observer = Observer(running, services.recorder, services.upstreams)
            stack.push_async_callback(observer.close)
            observer.start()
            if not settings.demo:
                stack.enter_context(_reloading_upstreams(services.upstreams))
            try:
                yield {"settings": running, "services": services, "gate": gate, "observer": observer}
            finally:
                closing()

    markdown = MarkdownProcess()
    app = Starlette(
        routes=route_table(settings, markdown),
        lifespan=lifespan,
        middleware=[
            Middleware(ObserverMiddleware),
            *_cors(settings),
            Middleware(GateMiddleware),
            Middleware(EncodedSlashes),
        ],
        exception_handlers={
            APIError: api_error_response,
            HTTPException: http_error_response,
            Exception: unexpected_error_response,
        },
    )
    # A redirect would be a response that upstream did not send.
    app.router.redirect_slashes = False
    orphans = Orphans()
    recorded = {path: RecordedEndpoint(endpoint, orphans) for path, endpoint in ENDPOINTS.items()}
    layers = [Middleware(ObserverMiddleware), *_cors(settings)]
    return _RecordedFirst(app, {path: _within(layers, GateMiddleware(each)) for path, each in recorded.items()})


@contextmanager
def _reloading_upstreams(upstreams: Upstreams) -> Iterator[None]:
    """Reloads the list of upstreams on SIGHUP. Only the main thread's event loop can receive signals."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGHUP, _reload_upstreams, upstreams)
    except (ValueError, RuntimeError):  # raised by asyncio and uvloop, respectively, outside the main thread
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _reload_upstreams(upstreams: Upstreams) -> None:
    try:
        upstreams.reload(load().upstreams)
    except ConfigurationError as exc:
        logger.error("the upstreams are not changed: %s", exc)


# Starlette's routing takes 16 µs per request (measured).
class _RecordedFirst:
    """Dispatches recorded endpoints before Starlette, whose routing costs more than our own work on a chat."""

    def __init__(self, app: ASGIApp, recorded: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._recorded = recorded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        recorded = self._recorded.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if recorded is None:
            await self._app(scope, receive, send)
            return
        try:
            await recorded(scope, receive, send)
        except Exception as exc:
            # If the reply has started, uvicorn rejects a second start and closes the connection.
            with suppress(RuntimeError):
                await (await unexpected_error_response(Request(scope), exc))(scope, receive, send)
            raise  # uvicorn logs the traceback


def _within(middleware: list[Middleware], app: ASGIApp) -> ASGIApp:
    return reduce(lambda inner, layer: layer.cls(inner, *layer.args, **layer.kwargs), reversed(middleware), app)


def _cors(settings: Settings) -> list[Middleware]:
    """CORS for browser clients. It runs before the gate, because preflight requests carry no key."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "X-Session-Id", "X-Session-Source", "Retry-After"],
        )
    ]


@asynccontextmanager
async def open_services(
    settings: Settings, *, transport: httpx.AsyncBaseTransport | None = None
) -> AsyncIterator[Services]:
    """Opens everything the handlers need. On exit, pending writes are saved before anything is closed."""
    database = database_of(settings)
    await database.open()
    try:
        recorder = Recorder(database, settings)
        await recorder.start()
        upstreams = Upstreams(settings, transport)
        if transport is None:
            upstreams.start()
        upkeep = Upkeep(settings, recorder)
        upkeep.start()
        services = Services(settings, database, recorder, upstreams)
        services.log.want()  # a process that was killed after a deletion may have left the rows in the write-ahead log
        try:
            yield services
        finally:
            services.searches.close()
            services.exports.close()
            await services.log.close()
            await upkeep.stop()
            await recorder.drain()
            await upstreams.close()
            if recorder.writer.last_error is None:
                with suppress(TimeoutError):  # the disk is stalled; the next start recovers from the log
                    async with asyncio.timeout(settings.commit_timeout_seconds):
                        await database.checkpoint()
    finally:
        await database.close()
