"""`serve --demo`: a small echo model with vLLM's wire format, so that the proxy treats it like a real engine."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from proxy.demo import dialects, wire
from proxy.demo.call import MODEL, DemoError, read_body, read_chat, read_completion
from proxy.demo.echo import answer, cut

__all__ = ["MODEL", "create_demo", "serve_demo"]

# 50 tokens a second, as a real model on a GPU: slow enough to see the stream.
TOKEN_PAUSE_SECONDS = 0.02


def create_demo(*, pause_seconds: float = TOKEN_PAUSE_SECONDS) -> Starlette:
    """The demo as an ASGI app, with `pause_seconds` between two tokens of a stream."""
    routes = [
        Route("/health", _empty, methods=["GET"]),
        Route("/ping", _empty, methods=["GET", "POST"]),
        Route("/version", _version, methods=["GET"]),
        Route("/v1/models", _models, methods=["GET"]),
        Route("/v1/chat/completions", _create_chat_completion, methods=["POST"]),
        Route("/v1/completions", _create_completion, methods=["POST"]),
        Route("/v1/responses", _create_response, methods=["POST"]),
        Route("/v1/messages", _create_message, methods=["POST"]),
    ]
    for route in routes:
        (route.methods or set()).discard("HEAD")  # vLLM answers HEAD with 405; Starlette adds it to every GET
    app = Starlette(routes=routes, exception_handlers={HTTPException: _detail, DemoError: _error})
    app.state.created = int(time.time())
    app.state.pause_seconds = pause_seconds
    return app


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does not install signal handlers: the proxy handles signals, and stops the demo after draining."""
        yield


class _Config(uvicorn.Config):
    def configure_logging(self) -> None:
        """Keeps the loggers unchanged, because the proxy's uvicorn shares them."""


@asynccontextmanager
async def serve_demo(*, pause_seconds: float = TOKEN_PAUSE_SECONDS) -> AsyncIterator[str]:
    """Runs the demo on a free loopback port in this process; yields its base URL."""
    # Loopback and a free port: nobody but this proxy should find it.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = _Config(create_demo(pause_seconds=pause_seconds), lifespan="off", timeout_graceful_shutdown=1)
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            # The socket is already listening: a connection made before uvicorn is ready waits in the backlog.
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


async def _empty(request: Request) -> Response:
    return Response()


async def _version(request: Request) -> Response:
    return _json({"version": "0.32.0"})


async def _models(request: Request) -> Response:
    return _json(wire.models(created=request.app.state.created))


async def _create_chat_completion(request: Request) -> Response:
    call = await read_chat(request)
    replies = [answer(call.body, index=index, room=call.room) for index in range(call.choice_count)]
    if not call.body.get("stream"):
        return _json(wire.chat_completion(call, replies))
    pause_seconds = request.app.state.pause_seconds
    return _event_stream(wire.chat_events(call, replies, pause_seconds=pause_seconds))


async def _create_completion(request: Request) -> Response:
    call, prompts = await read_completion(request)
    texts = [f" You wrote: {prompt}" for prompt in prompts for _ in range(call.choice_count)]
    replies = [cut(text, stop=call.body.get("stop"), room=call.room) for text in texts]
    if not call.body.get("stream"):
        return _json(wire.text_completion(call, replies))
    pause_seconds = request.app.state.pause_seconds
    return _event_stream(wire.text_events(call, replies, pause_seconds=pause_seconds))


async def _create_response(request: Request) -> Response:
    body = await read_body(request, required="input")
    reply = dialects.reply_to_response(body)
    if not body.get("stream"):
        return _json(dialects.response(body, reply))
    return _event_stream(dialects.response_events(body, reply, pause_seconds=request.app.state.pause_seconds))


async def _create_message(request: Request) -> Response:
    body = await read_body(request, required="messages")
    reply = dialects.reply_to_message(body)
    if not body.get("stream"):
        return _json(dialects.message(body, reply))
    return _event_stream(dialects.message_events(body, reply, pause_seconds=request.app.state.pause_seconds))


def _event_stream(events: AsyncIterator[bytes]) -> Response:
    return StreamingResponse(events, media_type="text/event-stream")


async def _detail(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"detail": error.detail}, status=error.status_code, headers=dict(error.headers or {}))


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DemoError)
    return _json(error.body, status=error.status)


def _json(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(wire.dumps(body), status, headers, media_type="application/json")
