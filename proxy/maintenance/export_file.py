"""One export as a file, read in pieces: a caller who reads slowly must not hold a snapshot of the database."""

from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from tempfile import SpooledTemporaryFile

from proxy.maintenance import export
from proxy.maintenance.export import Format, Scope
from proxy.storage.sqlite import connect

_MEMORY_BYTES = 2**20
_PIECE_BYTES = 2**16


def written(path: Path, scope: Scope, format_: Format) -> SpooledTemporaryFile[bytes]:
    """The export as a file, in memory while it is small. Takes its time: run it in a thread."""
    file = SpooledTemporaryFile[bytes](_MEMORY_BYTES)
    with closing(connect(path)) as connection, connection.snapshot():
        for text in export.export(connection, scope, format_=format_):
            file.write(text.encode())
    file.seek(0)
    return file


async def pieces(file: SpooledTemporaryFile[bytes]) -> AsyncIterator[bytes]:
    """The file piece by piece; it is gone at the end."""
    with file:
        while data := file.read(_PIECE_BYTES):
            yield data


def suffix(format_: Format) -> str:
    """How a file of this format is called."""
    return "md" if format_ == "markdown" else "jsonl"
