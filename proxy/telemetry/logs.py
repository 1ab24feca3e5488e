"""Configures logging: readable lines on the console, rotating JSON lines in the log folder.

Admin actions go to a separate audit file, so that other lines cannot rotate them away. Every line is truncated, because
it may contain texts from callers.
"""

import fcntl
import glob
import itertools
import logging
import logging.handlers
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

import orjson

from proxy.ids import timestamp
from proxy.settings import ConfigurationError, Settings
from proxy.wire.surrogates import encodable

_FILE_COUNT = 5
_CONSOLE_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
AUDIT = "stellarchat.audit"
# Seven requests with a model name of 21 MB once rotated the whole log away, audit lines included.
_MESSAGE_LENGTH = 4096
_FIELD_LENGTH = 1024
_TRACEBACK_LENGTH = 32_768  # the end of a traceback is kept: it is more informative
_FIELDS_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JSONLines(logging.Formatter):
    """One JSON object per line; `extra` fields are added next to the message."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _bounded(record.getMessage(), _MESSAGE_LENGTH),
            **{key: _field(value) for key, value in vars(record).items() if key not in _FIELDS_OF_EVERY_RECORD},
        }
        if record.exc_info:
            line["traceback"] = encodable(self.formatException(record.exc_info)[-_TRACEBACK_LENGTH:])
        return orjson.dumps(line, default=str).decode()


class _ForPeople(logging.Formatter):
    """Formats console lines, truncated."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if len(text) <= _TRACEBACK_LENGTH else text[:_MESSAGE_LENGTH] + "…" + text[-_TRACEBACK_LENGTH:]


def _field(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return _bounded(value if isinstance(value, str) else repr(value), _FIELD_LENGTH)


def _bounded(text: str, length: int) -> str:
    return encodable(text if len(text) <= length else text[:length] + "…")


class _Lock:
    """The lowest number not used by a living process: processes that rotate the same file would lose each other's
    lines.

    A new process continues the file of a dead one, so there are never more files than processes.
    """

    def __init__(self, folder: Path) -> None:
        for number in itertools.count(1):
            file = os.open(folder / f".lock-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
            else:
                self.number, self._file = number, file
                return

    def release(self) -> None:
        """Releases the number."""
        os.close(self._file)


class LinesFile(logging.handlers.RotatingFileHandler):
    """The log file.

    Also accepts batches of lines: one log record per request would cost more than the request's SQL.
    """

    lock_of_name: _Lock | None = None

    def _open(self) -> TextIOWrapper:
        """Opens the file readable only by its owner; also fixes the permissions of older files."""
        stream = open(self.baseFilename, self.mode, encoding=self.encoding, opener=_private)  # noqa: SIM115
        for path in Path(self.baseFilename).parent.glob(glob.escape(Path(self.baseFilename).name) + "*"):
            with suppress(OSError):
                path.chmod(0o600)
        return cast(TextIOWrapper, stream)

    def close(self) -> None:
        """Closes the file and releases its number."""
        super().close()
        lock, self.lock_of_name = self.lock_of_name, None
        if lock is not None:
            lock.release()

    def write_lines(self, lines: Iterable[dict[str, Any]]) -> None:
        """Writes complete lines in one call; rotates the file when it is full.

        Errors are reported like logging's own.
        """
        text = "".join(orjson.dumps(line, default=str).decode() + "\n" for line in lines)
        self.acquire()
        try:
            if self.stream is None:
                self.stream = self._open()
            if self.stream.tell() and self.stream.tell() + len(text) > self.maxBytes > 0:
                self.doRollover()
            self.stream.write(text)
            self.flush()
        except OSError as exc:
            logging.getLogger(__name__).error("the log cannot be written: %s", exc.strerror)
        finally:
            self.release()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def file_of_requests() -> LinesFile | None:
    """The file for request lines; None if logging is not configured, or only for warnings and errors."""
    root = logging.getLogger()
    if root.isEnabledFor(logging.INFO):
        return next((handler for handler in root.handlers if isinstance(handler, LinesFile)), None)
    return None


def configure(settings: Settings) -> None:
    """Configures this process's root logger. Raises ConfigurationError if the folder cannot be written."""
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(_ForPeople(_CONSOLE_FORMAT))
    root = logging.getLogger()
    for handler in root.handlers:
        handler.close()
    audit = logging.getLogger(AUDIT)
    for handler in audit.handlers:
        handler.close()
    file, audit_file = _file_handlers(settings)
    # Audit lines have a file of their own, which other lines cannot rotate away.
    root.handlers, audit.handlers = [console, file], [audit_file]
    for handler in root.handlers:
        handler.addFilter(_exclude_expected_errors)
    file.addFilter(_exclude_audit)
    root.setLevel(settings.log_level.upper())
    # At DEBUG aiosqlite logs every call with its parameters, which are messages.
    logging.getLogger("aiosqlite").setLevel(logging.INFO)
    if settings.log_level == "info":
        console.addFilter(_is_for_people)


def _file_handlers(settings: Settings) -> tuple[LinesFile, LinesFile]:
    """The general log file, and the audit log file."""
    folder = Path(settings.log_dir)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = None if settings.workers == 1 else _Lock(folder)
        number = "" if lock is None else f"-{lock.number}"
        handlers = [
            LinesFile(
                folder / f"{name}{number}.log",
                maxBytes=settings.log_file_bytes,
                backupCount=_FILE_COUNT,
                encoding="utf-8",
            )
            for name in ("stellarchat", "audit")
        ]
    except OSError as exc:
        raise ConfigurationError(f"cannot write logs to STELLARCHAT_LOG_DIR={folder}: {exc.strerror}") from exc
    for handler in handlers:
        handler.setFormatter(JSONLines())
    handlers[0].lock_of_name = lock
    return handlers[0], handlers[1]


def _exclude_audit(record: logging.LogRecord) -> bool:
    """Excludes audit records, which have their own file."""
    return record.name != AUDIT


def _is_for_people(record: logging.LogRecord) -> bool:
    """Excludes uvicorn's start and stop messages, for which we print our own lines. The file contains them."""
    return record.levelno > logging.INFO or not record.name.startswith("uvicorn")


def _exclude_expected_errors(record: logging.LogRecord) -> bool:
    """Excludes uvicorn's error about an incomplete reply, which we cause on purpose when upstream's was incomplete."""
    return record.msg != "ASGI callable returned without completing response."
