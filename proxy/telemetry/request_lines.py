"""Prints one short console line per chat, and per other request that failed."""

import os
import queue
import sys
import threading
import time
from contextlib import suppress
from typing import TextIO

from proxy.storage.exchange import Exchange, Outcome
from proxy.wire import json_text
from proxy.wire.endpoint import Tokens

_WAITING_MAX = 200  # lines; a terminal that is stopped (Ctrl-S) must not fill the memory
_REST_SECONDS = 0.02
# More than people can read on a terminal; further lines are only counted.
_LINES_A_SECOND = 50
_COLOURS = {"completed": "\033[32m", "incomplete": "\033[33m", "failed": "\033[31m"}
_DIM, _RESET = "\033[2m", "\033[0m"
_NAME_LENGTH = 40
_ERROR_LENGTH = 160


class RequestLines:
    """Writes lines in its own thread, so that a blocked terminal (Ctrl-S) does not block chats."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._has_colours = shows_colours(self._out)
        self._lines: queue.Queue[str | None] = queue.Queue(_WAITING_MAX)
        self._is_closing = threading.Event()
        self._second = 0
        self._count = 0
        self._left_out = 0
        threading.Thread(target=self._write, daemon=True, name="request-lines").start()

    def chat_ended(self, exchange: Exchange, outcome: Outcome, model: str | None) -> None:
        """Prints how a chat ended."""
        if self._has_room():
            self._put(chat_line(exchange, outcome, model, has_colours=self._has_colours))

    def request_failed(self, method: str, path: str, status: int) -> None:
        """Prints that another request failed."""
        if self._has_room():
            mark = _COLOURS["failed"] if self._has_colours else ""
            self._put(
                f"{_clock()}  {mark}{status or 'no answer'}{_RESET if mark else ''}  {method} {_sanitised(path, 80)}"
            )

    def close(self) -> None:
        """Ends the thread after the queued lines."""
        self._is_closing.set()
        with suppress(queue.Full):  # the terminal is blocked; the daemon thread ends with the process
            self._lines.put_nowait(None)

    def _has_room(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            if self._left_out:
                self._put(f"{_clock()}  … and {self._left_out} more")
            self._second, self._count, self._left_out = second, 0, 0
        self._count += 1
        if self._count > _LINES_A_SECOND:
            self._left_out += 1
            return False
        return True

    def _put(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._left_out += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                print(line, file=self._out, flush=True)
            except (OSError, ValueError):  # the terminal is gone, or the stream is closed at exit
                return
            # A thread that woke for each line would take the GIL from the chats each time.
            self._is_closing.wait(_REST_SECONDS)


def shows_colours(out: TextIO) -> bool:
    """Whether a stream is a terminal whose user has not asked for plain text (https://no-color.org)."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def chat_line(exchange: Exchange, outcome: Outcome, model: str | None, *, has_colours: bool = False) -> str:
    """Model, status, tokens, time to first token, duration and session of a chat."""
    tokens = "" if outcome.reply is None or not outcome.reply.usage else _tokens(outcome.reply.tokens)
    first = "" if outcome.time_to_first_token_ms is None else f"first {_seconds(outcome.time_to_first_token_ms)}, "
    took = "" if outcome.duration_ms is None else f"{first}{_seconds(outcome.duration_ms)}"
    status = outcome.status if outcome.status != "failed" else f"failed {outcome.http_status or ''}".rstrip()
    session = f"session {exchange.session.session_id} ({exchange.session.source})"
    if has_colours:
        status = f"{_COLOURS[outcome.status]}{status}{_RESET}"
        session = f"{_DIM}{session}{_RESET}"
    asked = exchange.request.get("model")
    name = model or (asked if isinstance(asked, str) else "no model")
    parts = [_clock(), _sanitised(name, _NAME_LENGTH), status, tokens, took, session, _why(outcome)]
    return "  ".join(part for part in parts if part)


def _why(outcome: Outcome) -> str:
    if outcome.status != "failed" or not outcome.error:
        return ""
    message = outcome.error.get("message") if isinstance(outcome.error, dict) else None
    return _sanitised(message if isinstance(message, str) else json_text.dumps(outcome.error), _ERROR_LENGTH)


def _sanitised(text: str, length: int) -> str:
    """Sanitises text for a terminal: truncated, without control characters."""
    text = text[:length]
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)


def _tokens(tokens: Tokens) -> str:
    """Prompt and completion tokens; `?` if upstream does not report them."""
    prompt, completion = ("?" if count is None else count for count in (tokens.prompt, tokens.completion))
    return f"{prompt}+{completion} tokens"


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.2f} s"


def _clock() -> str:
    return time.strftime("%H:%M:%S")
